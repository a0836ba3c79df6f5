"""From a model file to generated C: the stages in a row, for the commands that need them all."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from codegen.dead_channels import drop_dead_channels
from codegen.emit import Origin, emit, write_folder
from codegen.plan import Plan
from codegen.planner import INPUT_MODES, Request
from codegen.simplify import simplify
from codegen.targets import target
from mnet import __version__, golden, verify
from mnet.errors import PlanError
from mnet.flatbuffer import read_bytes
from mnet.graph import Graph, Reduce, Reduction
from mnet.labels import labels_of
from mnet.oracle import ORACLES, Oracle
from mnet.plan_cache import cached_plan
from mnet.tflite import read_model

VECTOR_INPUTS = 2  # in the file that a generated folder proves itself with


@dataclass(frozen=True)
class Options:
    """What a user may choose about generated code."""

    target: str = "cortex-m"
    oracle: str = "litert"
    input_mode: str = "const"
    name: str | None = None  # of the C functions; None = from the file
    simplify: bool = True
    ram: int | None = None  # bytes that the arena may take
    optimize: str = "balanced"  # see codegen.objective


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model on its way to C."""

    path: Path
    source: Graph  # as it stands in the file; the golden model runs this one
    graph: Graph  # simplified
    plan: Plan
    options: Options
    labels: tuple[str, ...] = ()  # names of the classes, where the file has them


def oracle(name: str) -> Oracle:
    """Return the oracle `name`.

    Raises:
        PlanError: there is none of that name.
    """
    if name not in ORACLES:
        raise PlanError(f"unknown oracle {name!r}; the oracles are {', '.join(ORACLES)}")
    return ORACLES[name]


def requested(path: Path, options: Options) -> tuple[Graph, Request]:
    """Read and simplify a model; return it as it stands in the file, and what the planner is to be asked.

    Raises:
        ModelError: the file is damaged or not supported.
        PlanError: unknown target, oracle or input mode; an operator for which the oracle is no good.
    """
    chosen, whose = target(options.target), oracle(options.oracle)
    if options.input_mode not in INPUT_MODES:
        raise PlanError(f"unknown input mode {options.input_mode!r}; the modes are {', '.join(INPUT_MODES)}")
    source = read_model(path)
    check_oracle(path, source, whose)
    if options.name is not None:
        if not options.name.isidentifier() or not options.name.isascii():
            raise PlanError(f"--name {options.name} is no C identifier: use letters, digits and _, a letter first")
        source = replace(source, name=options.name)
    graph = drop_dead_channels(simplify(source), whose) if options.simplify else source
    return source, Request(graph, chosen, whose, options.input_mode, options.optimize, options.ram)


def check_oracle(path: Path, graph: Graph, whose: Oracle) -> None:
    """Raise a sentence where an oracle's kernel of some operator is of no use."""
    for op in graph.ops:
        if isinstance(op, Reduce) and op.function is Reduction.SUM and not whose.sum_is_signed:
            raise PlanError(
                f"{path}, {op.name} (SUM): the kernel of {whose.name} takes its int8 input for uint8, and what it "
                "makes of it is of no use: choose --oracle tflm."
            )


def prepare(path: Path, options: Options) -> Prepared:
    """Read, simplify and plan a model.

    Raises:
        ModelError: the file is damaged or not supported.
        PlanError: unknown target, oracle, input mode or objective, or a budget that no plan keeps.
    """
    source, request = requested(path, options)
    labels = labels_of(read_bytes(path))
    prepared = Prepared(path, source, request.graph, cached_plan(request), options, labels)
    check_budget(prepared)
    return prepared


def check_budget(prepared: Prepared) -> None:
    """Raise a sentence that helps where the plan takes more than --ram."""
    made, budget = prepared.plan, prepared.options.ram
    if budget is None or made.arena_bytes <= budget:
        return
    whole = Request(prepared.graph, made.target, made.oracle, made.input_mode, "ram")
    least = cached_plan(whole)
    name, advice = prepared.path.name, f"`mnet plan {shlex.quote(prepared.path.name)}` shows what a budget costs"
    if least.arena_bytes <= budget:
        raise PlanError(
            f"no plan of {name} with --optimize {made.optimize} was found within --ram {budget} on {made.target.name}: "
            f"use --optimize ram alone ({least.arena_bytes:,} B); {advice}."
        )
    help_ = "Use a smaller alpha or resolution"
    if made.input_mode != "rows":
        other = cached_plan(replace(whole, input_mode="rows")).arena_bytes
        if other < least.arena_bytes:
            help_ = f"Try --input rows ({other:,} B)"
            if other > budget:
                help_ = f"--input rows needs {other:,} B; use a smaller alpha or resolution"
    raise PlanError(
        f"the smallest plan found for {name} takes {least.arena_bytes:,} B of arena on {made.target.name}, "
        f"{least.arena_bytes - budget:,} B more than --ram {budget}: the peak is {_at_peak(least)}. {help_}; {advice}."
    )


def _at_peak(made: Plan) -> str:
    """Return the makers of the two largest buffers at the step at which most bytes are live."""
    step = max(
        range(len(made.schedule)),
        key=lambda number: sum(b.size for b in made.buffers if b.birth <= number <= b.death),
    )
    live: dict[str, int] = {}
    for buffer in made.buffers:
        if buffer.birth <= step <= buffer.death:
            live[buffer.tensor] = live.get(buffer.tensor, 0) + buffer.size
    makers = {op.output: op.name for op in made.ops}
    largest = sorted(live, key=lambda name: -live[name])[:2]
    return " with ".join(makers.get(name, "the input") for name in largest)


def command_of(prepared: Prepared, labels: tuple[str, ...] = ()) -> str:
    """Return the command that makes the files again, without paths."""
    options, default = prepared.options, Options()
    parts = ["mnet codegen", prepared.path.name, "--target", prepared.plan.target.name]
    if options.oracle != default.oracle:
        parts += ["--oracle", options.oracle]
    if options.input_mode != default.input_mode:
        parts += ["--input", options.input_mode]
    if options.optimize != default.optimize:
        parts += ["--optimize", options.optimize]
    if options.ram is not None:
        parts += ["--ram", str(options.ram)]
    if options.name is not None:
        parts += ["--name", options.name]
    if not options.simplify:
        parts.append("--no-simplify")
    if labels:
        parts += ["--labels", shlex.quote(",".join(labels))]
    return " ".join([*parts, "-o", prepared.graph.name])


def generate(prepared: Prepared, labels: tuple[str, ...] = (), seed: int = 0) -> dict[str, str | bytes]:
    """Return the files of the generated folder, its test vectors included; `labels` in place of the file's own."""
    names = labels or (prepared.labels if fits(prepared.source, prepared.labels) else ())
    files: dict[str, str | bytes] = {
        **emit(prepared.plan, Origin(command_of(prepared, labels), __version__, names, prepared.source)),
    }
    inputs = verify.random_inputs(prepared.source, VECTOR_INPUTS, seed)
    tensors = golden.run(prepared.source, prepared.plan.oracle, inputs)
    files["test/vectors.bin"] = verify.vectors(prepared.plan, tensors)
    return files


def fits(graph: Graph, labels: tuple[str, ...]) -> bool:
    """Return whether an output has as many values as there are names, or is the number of a class."""
    outputs = [graph.tensors[name] for name in graph.outputs]
    return any(tensor.type != "int8" or tensor.shape[-1] == len(labels) for tensor in outputs)


def write(prepared: Prepared, folder: Path, labels: tuple[str, ...] = ()) -> None:
    """Write the generated folder: all of it, or nothing.

    Raises:
        PlanError: the place is taken by something else, or cannot be written.
    """
    write_folder(folder, generate(prepared, labels))
