"""`mnet profile`: exact instructions and modelled cycles, layer by layer; flash, arena and stack."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from codegen.plan import Plan
from mnet import cycles, toolchain, verify
from mnet.commands.console import Column, print_json, print_table
from mnet.cycles import Cost
from mnet.errors import ToolError
from mnet.graph import macs_of
from mnet.pipeline import Options, Prepared, prepare, write
from mnet.proof import find_target_compiler

PADDING, INPUT, RUNNER = "fill padding", "take input rows", "run the schedule"


@dataclass(frozen=True)
class LayerProfile:
    """What one layer takes in one inference, the loop that calls it not counted."""

    name: str
    kernel: str
    calls: int
    macs: int
    instructions: int
    cycles: int

    @property
    def cycles_per_mac(self) -> float | None:
        """Return cycles for each multiply-add; None where there are none."""
        return self.cycles / self.macs if self.macs else None


@dataclass(frozen=True)
class ModelProfile:
    """One inference on one core, and what the model takes of its memory."""

    model: str
    target: str
    oracle: str
    input_mode: str
    compiler: str
    flags: tuple[str, ...]
    emulator: str
    timing: str
    layers: tuple[LayerProfile, ...]  # the last ones are what is no layer
    macs: int
    instructions: int
    cycles: int
    code_bytes: int
    constant_bytes: int
    arena_bytes: int
    stack_bytes: int | None

    @property
    def flash_bytes(self) -> int:
        """Return what the model adds to flash."""
        return self.code_bytes + self.constant_bytes


def profile(model: Path, options: Options, json_file: str | None) -> None:
    """Profile one inference and print it."""
    found = profile_model(prepare(model, options))
    if json_file:
        print_json(asdict(found) | {"flash_bytes": found.flash_bytes}, json_file)
        if json_file == "-":
            return
    columns = (Column("layer"), Column("kernel"), Column("calls", True), Column("MACs", True))
    measured = (Column("instructions", True), Column("cycles", True), Column("cycles/MAC", True), Column("%", True))
    rows = [
        (
            layer.name,
            layer.kernel,
            layer.calls or None,
            layer.macs or None,
            layer.instructions,
            layer.cycles,
            layer.cycles_per_mac,
            f"{100 * layer.cycles / found.cycles:.1f}",
        )
        for layer in found.layers
    ]
    total = (
        "total",
        "",
        None,
        found.macs,
        found.instructions,
        found.cycles,
        found.cycles / max(found.macs, 1),
        "100.0",
    )
    title = f"{found.model} for {found.target}, oracle {found.oracle}, one inference\n"
    print_table((*columns, *measured), [*rows, ("",), total], title)
    print(f"\nflash {found.flash_bytes:,} B = code {found.code_bytes:,} + constants {found.constant_bytes:,}")
    stack = "stack not measured" if found.stack_bytes is None else f"stack {found.stack_bytes:,} B"
    print(f"RAM   arena {found.arena_bytes:,} B, {stack}")
    print(f"\n{found.compiler}, {' '.join(found.flags)}")
    print(f"instructions: exact, counted in {found.emulator}; cycles: modelled for zero wait states, {found.timing}")


def profile_model(prepared: Prepared) -> ModelProfile:
    """Build, run and count one inference of a random image.

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
    image = verify.random_inputs(prepared.source, 1, seed=0).tobytes()
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        folder = Path(name) / plan.graph.name
        write(prepared, folder)
        found = cycles.profile_folder(folder, plan.target, image, Path(name) / "build", kind)
        (elf,) = (Path(name) / "build" / "counted").glob("*.elf")
        sizes = toolchain.sizes(elf)
    return ModelProfile(
        model=prepared.path.name,
        target=plan.target.name,
        oracle=plan.oracle.name,
        input_mode=plan.input_mode,
        compiler=compiler.version,
        flags=(*(plan.target.gcc if kind == "gcc" else plan.target.zig), *toolchain.OPTIMIZE),
        emulator="QEMU" if found.emulator == "qemu" else "Unicorn",
        timing=found.timing,
        layers=_layers(plan, found.entries, found.runner),
        macs=sum(macs_of(prepared.graph, op) for op in prepared.graph.ops),
        instructions=found.total.instructions,
        cycles=found.total.cycles,
        code_bytes=sizes.code,
        constant_bytes=sizes.constants + sizes.data,
        arena_bytes=plan.arena_bytes,
        stack_bytes=found.stack_bytes,
    )


def _layers(plan: Plan, entries: Mapping[int, Cost], runner: Cost) -> tuple[LayerProfile, ...]:
    """Add up the entries of each op; what belongs to none comes last."""
    cost = {op.name: Cost() for op in plan.ops} | {PADDING: Cost(), INPUT: Cost()}
    for index, spent in entries.items():
        name = INPUT if index >= len(plan.entries) else plan.entries[index].op or PADDING
        cost[name] += spent
    rows = [
        LayerProfile(
            op.name,
            op.kernel.family,
            op.calls,
            0 if op.kernel.consumes_rows else macs_of(plan.graph, op.call.op),
            cost[op.name].instructions,
            cost[op.name].cycles,
        )
        for op in plan.ops
    ]
    rest = {PADDING: cost[PADDING], INPUT: cost[INPUT], RUNNER: runner}
    rows += [LayerProfile(name, "", 0, 0, c.instructions, c.cycles) for name, c in rest.items() if c.instructions]
    return tuple(rows)
