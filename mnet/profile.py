"""One inference, layer by layer: exact instructions, modelled cycles, multiply-adds, flash; arena and stack."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from codegen.plan import Plan
from mnet import cycles, flash, stack, toolchain, verify
from mnet.cycles import Cost
from mnet.errors import ToolError
from mnet.graph import macs_of
from mnet.pipeline import Prepared, write
from mnet.proof import find_target_compiler
from mnet.toolchain import Symbol

PADDING, INPUT, RUNNER = "fill padding", "take input rows", "run the schedule"


@dataclass(frozen=True)
class LayerProfile:
    """What one layer takes in one inference, the loop that calls it not counted."""

    name: str
    kernel: str
    calls: int
    macs: int  # that are made
    file_macs: int  # of the layer as it stands in the file
    instructions: int
    cycles: int
    flash_cycles: int  # the same when code and constants are read from a flash with wait states: an estimate
    fetch_cycles: int  # the same at the flash's bandwidth for code, but for loops that fit an instruction cache
    code_bytes: int  # of the function; 0 where an earlier layer has it
    shares_code_with: str  # that earlier layer, or ""
    constant_bytes: int  # weights, biases, multipliers; of all phases

    @property
    def cycles_per_mac(self) -> float | None:
        """Return cycles for each multiply-add that is made; None where there are none."""
        return self.cycles / self.macs if self.macs else None

    @property
    def cycles_per_file_mac(self) -> float | None:
        """Return cycles for each multiply-add that the file asks for; None where there are none."""
        return self.cycles / self.file_macs if self.file_macs else None


@dataclass(frozen=True)
class ModelProfile:
    """One inference on one core, and what the model takes of its memory."""

    model: str
    model_hash: str
    target: str
    oracle: str
    input_mode: str
    simplify: bool
    optimize: str
    compiler: str
    flags: tuple[str, ...]
    emulator: str
    timing: str
    wait_states: int
    layers: tuple[LayerProfile, ...]  # the last ones are what is no layer
    macs: int
    file_macs: int
    instructions: int
    cycles: int
    flash_cycles: int
    fetch_cycles: int
    code_bytes: int
    constant_bytes: int
    arena_bytes: int
    stack_bytes: int | None  # that the run of one image took, painted
    worst_stack_bytes: int  # that any call of a public function can take, from the machine code

    @property
    def flash_bytes(self) -> int:
        """Return what the model adds to flash."""
        return self.code_bytes + self.constant_bytes

    def as_json(self) -> dict[str, Any]:
        """Return the profile as plain values: what `--json` writes and `--compare` reads."""
        return asdict(self) | {"flash_bytes": self.flash_bytes}


def profile_model(prepared: Prepared, wait_states: int = 0) -> ModelProfile:
    """Build, run and count one inference of a random image.

    Args:
        prepared: the model and its plan.
        wait_states: of the flash that code and constants are read from, for `flash_cycles` and `fetch_cycles`.

    Raises:
        ToolError: the target is no emulated core, or a compiler or emulator is missing or failed.
    """
    plan = prepared.plan
    if not plan.target.boards:
        raise ToolError(
            f"{plan.target.name} is no emulated core to count on: choose --target cortex-m4 or another core."
        )
    kind = find_target_compiler()
    compiler = toolchain.find_compiler("arm-none-eabi-gcc" if kind == "gcc" else kind)
    image = verify.input_bytes(prepared.source, verify.random_inputs(prepared.source, 1, seed=0))
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        folder = Path(name) / plan.graph.name
        write(prepared, folder)
        found = cycles.profile_folder(folder, plan.target, image, Path(name) / "build", kind)
        plain = toolchain.build_target(
            folder, plan.target, (), kind, Path(name) / "plain", keep=stack.public_functions(plan)
        )
        worst = stack.worst_case(plain, plan).bytes
        (elf,) = (Path(name) / "build" / "counted").glob("*.elf")
        sizes, symbols = toolchain.sizes(elf), toolchain.symbols(elf)
    constant_bytes = sizes.constants + sizes.data
    layers = _layers(prepared, found, wait_states, symbols, sizes.code, constant_bytes)
    return ModelProfile(
        model=prepared.path.name,
        model_hash=plan.graph.model_hash,
        target=plan.target.name,
        oracle=plan.oracle.name,
        input_mode=plan.input_mode,
        simplify=prepared.options.simplify,
        optimize=prepared.options.optimize,
        compiler=compiler.version,
        flags=(*(plan.target.gcc if kind == "gcc" else plan.target.zig), *toolchain.OPTIMIZE),
        emulator="QEMU" if found.emulator == "qemu" else "Unicorn",
        timing=found.timing,
        wait_states=wait_states,
        layers=layers,
        macs=sum(macs_of(prepared.graph, op) for op in prepared.graph.ops),
        file_macs=sum(macs_of(prepared.source, op) for op in prepared.source.ops),
        instructions=found.total.instructions,
        cycles=found.total.cycles,
        flash_cycles=sum(layer.flash_cycles for layer in layers),
        fetch_cycles=sum(layer.fetch_cycles for layer in layers),
        code_bytes=sizes.code,
        constant_bytes=constant_bytes,
        arena_bytes=plan.arena_bytes,
        stack_bytes=found.stack_bytes,
        worst_stack_bytes=worst,
    )


def _row_of(plan: Plan, entry: int) -> str:
    """Return the row of the table that an entry belongs to."""
    return INPUT if entry >= len(plan.entries) else plan.entries[entry].op or PADDING


def _costs(plan: Plan, found: cycles.Profile, wait_states: int) -> tuple[dict[str, Cost], dict[str, int]]:
    """Return for each row what its entries cost, and how long they wait for code at the flash's bandwidth."""
    cost = {name: Cost() for name in (*(op.name for op in plan.ops), PADDING, INPUT)}
    stall = dict.fromkeys((*cost, RUNNER), 0)
    for entry, spent in found.entries.items():
        cost[_row_of(plan, entry)] += spent
    for entry, fetch in found.fetch.items():
        stall[_row_of(plan, entry)] += fetch.stall(wait_states)
    return cost | {RUNNER: found.runner}, stall


def _function_bytes(plan: Plan, symbols: tuple[Symbol, ...]) -> dict[str, int]:
    """Return the bytes of each kernel's function; compilers may add .constprop or .isra to a name."""
    found = {op.symbol: 0 for op in plan.ops}
    for symbol in symbols:
        name = symbol.name.split(".")[0]
        if symbol.is_function and name in found:
            found[name] += symbol.size
    return found


def _constants(plan: Plan) -> tuple[dict[str, int], dict[str, int]]:
    """Return for each op the bytes of its constants, and those that all its calls read, each word once a call."""
    stored, read = {op.name: 0 for op in plan.ops}, {op.name: 0 for op in plan.ops}
    counted = set()
    for entry, calls in zip(plan.entries, plan.entry_calls, strict=True):
        if entry.op and entry.constants:
            size = 4 * len(plan.constants[entry.constants])
            read[entry.op] += size * calls
            if entry.constants not in counted:  # phases of a ring may read one array, from different words on
                stored[entry.op] += size
                counted.add(entry.constants)
    return stored, read


def _layers(
    prepared: Prepared,
    found: cycles.Profile,
    wait_states: int,
    symbols: tuple[Symbol, ...],
    code_bytes: int,
    constant_bytes: int,
) -> tuple[LayerProfile, ...]:
    """Return the rows of the table: layers, then what is none; the schedule gets code and constants that are left."""
    plan = prepared.plan
    cost, stall = _costs(plan, found, wait_states)
    functions = _function_bytes(plan, symbols)
    stored, read = _constants(plan)
    in_file = {op.name: macs_of(prepared.source, op) for op in prepared.source.ops}
    owner: dict[str, str] = {}
    rows = []
    for op in plan.ops:
        first = owner.setdefault(op.symbol, op.name)
        spent, computes = cost[op.name], not op.kernel.consumes_rows
        rows.append(
            LayerProfile(
                name=op.name,
                kernel=op.kernel.family,
                calls=op.calls,
                macs=macs_of(plan.graph, op.call.op) if computes else 0,
                file_macs=in_file.get(op.call.op.name, 0) if computes else 0,
                instructions=spent.instructions,
                cycles=spent.cycles,
                flash_cycles=flash.estimate(spent.cycles, read[op.name], wait_states),
                fetch_cycles=spent.cycles + stall[op.name],
                code_bytes=functions[op.symbol] if first == op.name else 0,
                shares_code_with="" if first == op.name else first,
                constant_bytes=stored[op.name],
            )
        )
    code_left = code_bytes - sum(row.code_bytes for row in rows)
    constants_left = constant_bytes - sum(row.constant_bytes for row in rows)
    for name in (PADDING, INPUT, RUNNER):
        code, constants = (code_left, constants_left) if name == RUNNER else (0, 0)
        spent = cost[name]
        if spent.instructions or code:
            rows.append(
                LayerProfile(
                    name=name,
                    kernel="",
                    calls=0,
                    macs=0,
                    file_macs=0,
                    instructions=spent.instructions,
                    cycles=spent.cycles,
                    flash_cycles=flash.estimate(spent.cycles, constants, wait_states),
                    fetch_cycles=spent.cycles + stall[name],
                    code_bytes=code,
                    shares_code_with="",
                    constant_bytes=constants,
                )
            )
    return tuple(rows)
