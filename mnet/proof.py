"""`mnet verify`: every leg of the chain of proof for a model and a target; what it compared, or why it did not run."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from codegen.targets import Target, target
from mnet import golden, verify
from mnet.boards import Fit, find_board, fit
from mnet.emulator import Run, find_qemu, run_host, run_qemu, run_unicorn
from mnet.errors import MissingToolError, ToolError
from mnet.graph import Int8Array
from mnet.pipeline import Prepared, write
from mnet.runtimes import runtime_of
from mnet.toolchain import build_host, build_target, find_compiler
from mnet.verify import Leg

Progress = Callable[[str, int, int], None]  # name of the leg, inputs done, inputs in all
Program = Callable[[bytes], Run]  # inputs, one after the other -> what the harness gave back


@dataclass(frozen=True)
class Proof:
    """All legs of one verification."""

    model: str
    target: str
    oracle: str
    seed: int
    legs: tuple[Leg, ...]
    fit: Fit | None = None  # what the model takes of a board's memory, where one was asked for and it fits

    @property
    def exit_code(self) -> int:
        """Return 0 if every leg is equal, 1 if one differs or failed, 3 if one could not run."""
        if any(leg.status in ("differs", "failed") for leg in self.legs):
            return 1
        return 3 if any(leg.status == "not run" for leg in self.legs) else 0


def _no_progress(leg: str, done: int, total: int) -> None:
    pass


def prove(
    prepared: Prepared,
    count: int = 20,
    emulated_count: int = 2,
    seed: int = 0,
    inputs: Mapping[str, Int8Array] | None = None,
    progress: Progress = _no_progress,
    cores: Sequence[str] | None = None,
    board: str | None = None,
) -> Proof:
    """Run every leg for a model.

    Args:
        prepared: the model and its plan.
        count: inputs for golden model, oracle and host.
        emulated_count: how many of them the emulated cores run.
        seed: of the random inputs.
        inputs: int8 [count, height, width, channels] of each input, to take instead of random ones.
        progress: called as inputs are done.
        cores: names of the targets to emulate; None for all that the plan's target runs on.
        board: name of a board whose flash and RAM have to hold the model, see `mnet.boards`.

    Raises:
        PlanError: no such board.
    """
    chosen, found = find_board(board) if board else None, None
    if inputs is None:
        inputs = verify.random_inputs(prepared.source, count, seed)
    tensors = golden.run(prepared.source, prepared.plan.oracle, inputs)
    few = {name: values[:emulated_count] for name, values in tensors.items()}
    legs = [_attempt(runtime_of(prepared.plan.oracle).title, lambda: _oracle(prepared, tensors))]
    if any(tensor.constants for tensor in prepared.graph.tensors.values()):
        legs.append(verify.compare_constants("folded constants", prepared.graph, tensors))
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        folder = Path(name) / prepared.graph.name
        write(prepared, folder)
        legs.append(
            _attempt("C on this computer", partial(_run, partial(host_program, folder), prepared, tensors, progress))
        )
        for core in prepared.plan.target.runs_on if cores is None else cores:
            build = partial(core_program, folder, target(core))
            legs.append(_attempt(f"C on {core}", partial(_run, build, prepared, few, progress)))
        if chosen:

            def within() -> Leg:
                nonlocal found
                leg, found = fit(prepared.plan, folder, chosen, find_target_compiler(), few)
                return leg

            legs.append(_attempt(f"C within {chosen.name}", within))
    legs = [_explained(leg, prepared, tensors) for leg in legs]
    return Proof(prepared.path.name, prepared.plan.target.name, prepared.plan.oracle.name, seed, tuple(legs), found)


def _explained(leg: Leg, prepared: Prepared, tensors: dict[str, Int8Array]) -> Leg:
    """Return `leg` with the arithmetic beside each mismatch."""
    return replace(
        leg,
        mismatches=tuple(
            replace(mismatch, arithmetic=verify.arithmetic_of(prepared.source, prepared.plan.oracle, tensors, mismatch))
            for mismatch in leg.mismatches
        ),
    )


def _attempt(name: str, run: Callable[[], Leg]) -> Leg:
    """Run a leg; one that lacks its tools is listed as not run, one whose program does not end well as failed."""
    try:
        return run()
    except MissingToolError as error:
        return Leg(name, "not run", reason=str(error))
    except ToolError as error:
        return Leg(name, "failed", reason=str(error))


def _oracle(prepared: Prepared, tensors: dict[str, Int8Array]) -> Leg:
    runtime = runtime_of(prepared.plan.oracle)
    found = runtime.run(prepared.path, prepared.source, tensors)
    return verify.compare_tensors(runtime.title, prepared.source, found, tensors)


def host_program(folder: Path, defines: Sequence[str] = ("SUBJECT_TRACE", "SUBJECT_POISON")) -> tuple[str, Program]:
    """Build a generated folder for this computer; return what to call it, and how to run it.

    Args:
        folder: what `mnet.pipeline.write` wrote.
        defines: the harness's switches: by default every row is traced, under poison; none is fast.

    Raises:
        ToolError: no compiler, or it fails.
    """
    compiler = find_compiler("cc")
    program = build_host(folder, defines, folder / "host")
    return f"C on this computer, {compiler.name}", lambda data: run_host(program, data)


def core_program(folder: Path, core: Target, defines: Sequence[str] = ("SUBJECT_TRACE",)) -> tuple[str, Program]:
    """Build a generated folder for a core; return what to call it, and how to run it in an emulator.

    Args:
        folder: what `mnet.pipeline.write` wrote.
        core: whose instructions are compiled and emulated.
        defines: the harness's switches: by default every row is traced; none is fast.

    Raises:
        ToolError: no compiler or emulator, or it fails.
    """
    try:
        find_qemu()
        emulator = "QEMU"
    except MissingToolError:
        if core.unicorn is None:
            raise
        emulator = "Unicorn"
    compiler = find_target_compiler()
    program = build_target(folder, core, defines, compiler, folder / core.name)

    def run(data: bytes) -> Run:
        return run_qemu(program, None, data) if emulator == "QEMU" else run_unicorn(program, core, data)

    return f"C on {core.name}, {compiler}, {emulator}", run


def find_target_compiler() -> str:
    """Return "gcc" or "zig", whichever is there.

    Raises:
        MissingToolError: neither; the message says how to get the first.
    """
    try:
        find_compiler("arm-none-eabi-gcc")
        return "gcc"
    except MissingToolError as missing:
        try:
            find_compiler("zig")
            return "zig"
        except MissingToolError:
            raise missing from None


def _run(
    build: Callable[[], tuple[str, Program]],
    prepared: Prepared,
    tensors: dict[str, Int8Array],
    progress: Progress,
) -> Leg:
    name, program = build()
    total = len(tensors[prepared.source.inputs[0]])
    done = 0

    def advance(inputs: int) -> None:
        nonlocal done
        done += inputs
        progress(name, done, total)

    progress(name, 0, total)
    return verify.run_leg(name, prepared.plan, tensors, lambda data: program(data).trace, advance)
