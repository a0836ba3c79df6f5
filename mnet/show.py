"""`mnet show`: every stage on the way from model to machine code, as text."""

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import assert_never

import capstone

from codegen.certificate import certificate
from codegen.emit import Origin, emit, kernel_text
from codegen.layout import Storage
from codegen.plan import Buffer, Plan, PlannedOp
from mnet import __version__, toolchain
from mnet.errors import MnetError, ModelError, ToolError
from mnet.graph import (
    AXES,
    ArgMax,
    AveragePool2D,
    Binary,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    L2Normalization,
    MaxPool2D,
    Op,
    Pad,
    Rearrange,
    Reduce,
    Reshape,
    Resize,
    Softmax,
    Unary,
    inputs_of,
    macs_of,
    numbered,
    weights_of,
)
from mnet.oracle import requantization
from mnet.picture import maker_of, peak_of, spans_of
from mnet.pipeline import Prepared, command_of, write
from mnet.proof import find_target_compiler

_LIFE_COLUMNS = 40  # of the picture of a buffer's life


def show(prepared: Prepared, stage: str, layer: str | None = None) -> str:
    """Return a stage as text.

    Args:
        prepared: the model and its plan.
        stage: graph, simplified, plan, memory, c or asm.
        layer: name of an op or of the tensor that it makes; None for all.

    Raises:
        MnetError: no such stage or layer, or the compiler that asm needs is missing.
    """
    match stage:
        case "graph":
            return _graph(prepared, prepared.source, layer)
        case "simplified":
            return _graph(prepared, prepared.graph, layer) if layer else _simplified(prepared)
        case "plan":
            return _plan(prepared.plan, layer)
        case "memory":
            return _memory(prepared.plan, layer)
        case "c":
            return _c(prepared, layer)
        case "asm":
            return _asm(prepared, layer)
        case _:
            raise MnetError(f"unknown stage {stage!r}; the stages are graph, simplified, plan, memory, c and asm")


# --- graph ------------------------------------------------------------------------------------------------------------


def _graph(prepared: Prepared, graph: Graph, layer: str | None) -> str:
    if layer is not None:
        op = next((op for op in graph.ops if layer in (op.name, op.output)), None)
        if op is None:
            raise _no_layer(graph.name, layer, (op.name for op in graph.ops))
        return _detail(prepared, graph, op)
    rows: list[tuple[str, ...]] = [("op", "kind", "input", "output", "attributes", "MACs", "weights")]
    for op in graph.ops:
        rows.append((*_described(graph, op), _count(macs_of(graph, op)), _count(weights_of(op))))
    total = sum(macs_of(graph, op) for op in graph.ops)
    head = f"{graph.name}: {len(graph.ops)} ops, {total:,} multiply-adds, model {graph.model_hash}"
    names = [f"classes: {', '.join(prepared.labels)}"] if prepared.labels else []
    return "\n".join([head, *names, *_aligned(rows, right={5, 6})])


def _simplified(prepared: Prepared) -> str:
    """Return the simplified graph, with the work of each layer in the file beside what is left of it."""
    graph, source = prepared.graph, prepared.source
    before = {op.name: op for op in source.ops}
    rows: list[tuple[str, ...]] = [
        ("op", "kind", "input", "output", "attributes", "MACs", "in file", "weights", "in file")
    ]
    for op in graph.ops:
        was = before.pop(op.name)
        macs = (_count(macs_of(graph, op)), _count(macs_of(source, was)))
        rows.append((*_described(graph, op), *macs, _count(weights_of(op)), _count(weights_of(was))))
    all_macs = (f"{sum(macs_of(g, op) for op in g.ops):,}" for g in (graph, source))
    all_weights = (f"{sum(map(weights_of, g.ops)):,}" for g in (graph, source))
    rows.append(("total", "", "", "", "", *all_macs, *all_weights))
    head = f"{graph.name}: {len(graph.ops)} of {len(source.ops)} ops, model {graph.model_hash}"
    gone = [f"folded or dropped: {', '.join(type(op).__name__ for op in before.values())}"] if before else []
    return "\n".join([head, *_aligned(rows, right={5, 6, 7, 8}), *gone])


def _described(graph: Graph, op: Op) -> tuple[str, str, str, str, str]:
    """Return name, kind, shapes of inputs, shape of the output, attributes."""
    sources = " + ".join(_by(graph.tensors[name].shape) for name in inputs_of(op))
    return op.name, type(op).__name__, sources, _by(graph.tensors[op.output].shape), _attributes(op)


def _attributes(op: Op) -> str:
    match op:
        case Conv2D() | DepthwiseConv2D():
            kernel = op.weights.shape[1:3] if isinstance(op, Conv2D) else op.weights.shape[:2]
            words = [f"kernel {_by(kernel)}"]
            words += [f"stride {_by(op.stride)}"] * (op.stride != (1, 1))
            words += [f"dilation {_by(op.dilation)}"] * (op.dilation != (1, 1))
            words += [f"padding {','.join(map(str, op.padding))}"] * any(op.padding)
            words += [f"dense, {op.dense.value}"] if isinstance(op, Conv2D) and op.dense else []
            return ", ".join(words)
        case AveragePool2D() | MaxPool2D():
            return f"window {_by(op.kernel)}, stride {_by(op.stride)}"
        case Resize():
            words = [op.sampling.value]
            words += ["align corners"] * op.align_corners + ["half pixel centers"] * op.half_pixel_centers
            return ", ".join(words)
        case Pad():
            return f"padding {','.join(map(str, (*op.padding, *op.channels)))}, value {op.value}"
        case Concat():
            return f"along {AXES[op.axis]}"
        case Gather():
            return ", ".join(f"{word} {_numbers(taken)}" for word, taken in zip(AXES, op.numbers, strict=True))
        case Rearrange():
            return f"as {_by(op.view)}, axes {','.join(map(str, op.permutation))}"
        case FullyConnected():
            return op.dense.value
        case Reduce():
            return f"{op.function.value} over {' and '.join(AXES[axis] for axis in op.axes) or 'nothing'}"
        case Unary():
            return op.function.value + (f" {op.alpha:.9g}" if op.alpha else "")
        case Binary():
            return op.function.value + (f", constant {_by(op.constant.values.shape)}" if op.constant else "")
        case ArgMax() | L2Normalization() | Reshape() | Softmax():
            return ""
        case _:
            assert_never(op)


def _numbers(taken: Sequence[int]) -> str:
    """Return numbers in words, as a slice where they are one.

    >>> _numbers((2, 3, 4)), _numbers((4, 2, 0)), _numbers((5,)), _numbers((1, 0, 1))
    ('2:5', '4::-2', '5', '1,0,1')
    """
    step = taken[1] - taken[0] if len(taken) > 1 else 1
    if len(taken) == 1 or any(b - a != step for a, b in itertools.pairwise(taken)):
        return ",".join(map(str, taken))
    end = taken[-1] + step
    return f"{taken[0]}:{'' if end < 0 else end}{'' if step == 1 else f':{step}'}"


def _detail(prepared: Prepared, graph: Graph, op: Op) -> str:
    lines = [f"{op.name}: {type(op).__name__} {_attributes(op)}".rstrip()]
    for word, name in (*(("in ", name) for name in inputs_of(op)), ("out", op.output)):
        tensor = graph.tensors[name]
        lines.append(
            f"  {word} {_by(tensor.shape):>12}  scale {tensor.scale:.9g}, zero_point {tensor.zero_point}  {name}"
        )
    if isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected):
        how = requantization(op, graph, prepared.plan.oracle)
        low, high = op.activation
        lines += [
            f"  weights int8 {_by(op.weights.shape)}, {op.weights.min()} to {op.weights.max()}",
            f"  output between {low} and {high}; {macs_of(graph, op):,} multiply-adds",
            f"  rounding of {prepared.plan.oracle.name}: {how.rounding.value}",
        ]
        rows: list[tuple[str, ...]] = [("channel", "bias", "weight scale", "multiplier", "shift")]
        for channel in range(len(op.bias)):
            numbers = (
                op.bias[channel],
                f"{op.weight_scales[channel]:.9g}",
                how.multiplier[channel],
                how.shift[channel],
            )
            rows.append((str(channel), *map(str, numbers)))
        lines += [f"  {line}" for line in _aligned(rows, right={0, 1, 2, 3, 4})]
    return "\n".join(lines)


# --- plan and memory --------------------------------------------------------------------------------------------------


def _plan(plan: Plan, layer: str | None) -> str:
    ops = _planned(plan, layer)
    names = {op.name for op in ops}
    lines = [_headline(plan)]
    rows = [("op", "kernel", "function", "output", "calls", "input lies as", "of it")]
    for op in ops:
        kept = [_kept(plan.storage[name]) for name in op.inputs]
        layouts = ", ".join(plan.storage[name].layout.name for name in op.inputs)
        shape = _by(op.call.output.tensor.shape)
        rows.append((op.name, op.kernel.family, op.symbol, shape, str(op.calls), layouts, ", ".join(kept)))
    lines += _aligned(rows, right={4})
    lines += ["", "schedule: step, then what runs (times in a row)"]
    lines += _schedule(plan, names if layer else None)
    return "\n".join(lines)


def _schedule(plan: Plan, only: set[str] | None) -> list[str]:
    """Return the steps in runs of one label; with `only`, a line for each step of these ops, and where its row lies."""
    if only is not None:
        done = [0] * len(plan.entries)
        lines = []
        for number, step in enumerate(plan.schedule):
            if step < 0:
                continue
            entry = plan.entries[step]
            call = done[step]
            done[step] += 1
            if entry.op in only:
                first = entry.first_row + call * entry.row_step
                made = f"rows {first} to {first + entry.rows - 1}" if entry.rows > 1 else f"row {first}"
                address = plan.row_address[entry.output + call * entry.output_step]
                lines.append(
                    f"  {number:6}  {entry.label}: {made if entry.rows else 'adds a row'} at arena + {address}"
                )
        return lines
    takes = numbered("take", len(plan.graph.inputs))
    runs: list[tuple[int, str, int]] = []
    for number, step in enumerate(plan.schedule):
        label = takes[~step] if step < 0 else plan.entries[step].label
        if runs and runs[-1][1] == label:
            runs[-1] = (runs[-1][0], label, runs[-1][2] + 1)
        else:
            runs.append((number, label, 1))
    lines, line, start = [], "", 0
    for number, label, times in runs:
        word = label + (f" ({times})" if times > 1 else "")
        if line and len(line) + len(word) > 100:
            lines.append(f"  {start:6}  {line}")
            line = ""
        if not line:
            start = number
        line += (", " if line else "") + word
    return [*lines, f"  {start:6}  {line}"]


def _memory(plan: Plan, layer: str | None) -> str:
    names = {name for op in _planned(plan, layer) for name in (*op.inputs, op.output)} if layer else None
    steps = len(plan.schedule)
    lines = [_headline(plan), f"rows {plan.rows_bytes:,} B, then state {plan.state_bytes:,} B"]
    rows = [("from", "to", "bytes", "steps", f"life, of {steps:,} steps", "rows of", "lie as")]
    for spans in spans_of(plan.buffers):
        first, last = spans[0], spans[-1]
        if names is not None and first.tensor not in names:
            continue
        storage = plan.storage.get(first.tensor)
        kept = "as it came" if storage is None else f"{storage.layout.name}, {_kept(storage)}"
        death = "end" if last.death >= steps else str(last.death)
        numbers = (f"{first.offset:,}", f"{first.offset + first.size:,}", f"{first.size:,}")
        maker = maker_of(plan, first.tensor) + ("" if first.slot is None else f", slot {first.slot}")
        rows.append((*numbers, f"{first.birth}..{death}", _life(spans, steps), maker, kept))
    lines += _aligned(rows, right={0, 1, 2})
    step, live = peak_of(plan)
    at_peak: dict[str, int] = {}
    for buffer in plan.buffers:
        if buffer.birth <= step <= buffer.death:
            maker = maker_of(plan, buffer.tensor)
            at_peak[maker] = at_peak.get(maker, 0) + buffer.size
    listed = ", ".join(f"{maker} {size:,}" for maker, size in sorted(at_peak.items(), key=lambda item: -item[1]))
    lines.append(f"most bytes live at once: {live:,} B in step {step}: {listed}")
    bound = certificate(plan)
    lines.append(
        f"no plan of whole rows in these layouts, each row made once, has fewer than {bound.bound_bytes:,} B; "
        f"{bound.verdict}, and the arena has {bound.percent:.0f} % more. "
        f"At a byte a value the bound is {bound.value_bound_bytes:,} B"
    )
    return "\n".join(lines)


def _life(spans: Sequence[Buffer], steps: int) -> str:
    """Return the life of a buffer in columns; a column of steps in none of which it lives is a dot.

    >>> _life([Buffer("t", 0, 4, 0, 99), Buffer("t", 0, 4, 300, 0xFFFF)], 400)
    '##########....................##########'
    """
    columns = ["."] * _LIFE_COLUMNS
    for span in spans:
        first = span.birth * _LIFE_COLUMNS // steps
        last = min(span.death, steps - 1) * _LIFE_COLUMNS // steps
        columns[first : last + 1] = "#" * (last + 1 - first)
    return "".join(columns)


def _kept(storage: Storage) -> str:
    return "apart" if storage.apart else "whole" if storage.whole else f"{storage.slots} of {storage.virtual_rows} rows"


def _headline(plan: Plan) -> str:
    return (
        f"{plan.graph.name} for {plan.target.name}, oracle {plan.oracle.name}, input {plan.input_mode}: "
        f"{len(plan.schedule):,} steps, {plan.arena_bytes:,} B of arena"
    )


# --- code -------------------------------------------------------------------------------------------------------------


def _c(prepared: Prepared, layer: str | None) -> str:
    plan = prepared.plan
    if layer is None:
        return emit(plan, Origin(command_of(prepared), __version__, source=prepared.source))[
            f"{plan.graph.name}.c"
        ].rstrip("\n")
    texts = {op.symbol: kernel_text(plan, op).strip("\n") for op in _planned(plan, layer)}
    return "\n\n".join(texts.values())


def _asm(prepared: Prepared, layer: str | None) -> str:
    plan = prepared.plan
    if not plan.target.boards:
        raise ToolError(
            f"{plan.target.name} has no machine code to show here: choose --target cortex-m4 or another core."
        )
    wanted = [op.symbol for op in _planned(plan, layer)] if layer else None
    compiler = find_target_compiler()
    with tempfile.TemporaryDirectory(prefix="mnet-") as name:
        folder = Path(name) / plan.graph.name
        write(prepared, folder)
        elf = toolchain.build_target(folder, plan.target, ("SUBJECT_COUNT",), compiler, Path(name) / "build")
        functions = [
            symbol
            for symbol in toolchain.symbols(elf)
            if symbol.is_function and symbol.section == ".model_code" and symbol.size
        ]
        code = toolchain.section(elf, ".model_code")
    if wanted is not None:  # compilers may add .constprop or .isra to a name
        functions = [f for f in functions if any(f.name == w or f.name.startswith(f"{w}.") for w in wanted)]
    if not functions:
        raise ToolError(f"{compiler} kept no function of its own for {layer}: it is part of its caller.")
    flags = plan.target.gcc if compiler == "gcc" else plan.target.zig
    head = f"@ {plan.graph.name} for {plan.target.name}, {compiler} {' '.join((*flags, *toolchain.OPTIMIZE))}"
    start, content = code
    decoder = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8)
    lines = [head]
    for function in functions:
        lines += ["", f"{function.name}:    @ {function.size} B"]
        body = content[function.address - start : function.address - start + function.size]
        lines += _disassembled(decoder, body, function.address)
    return "\n".join(lines)


def _disassembled(decoder: capstone.Cs, body: bytes, address: int) -> list[str]:
    """Return a line for each instruction; what does not decode (tables, MVE) appears as data."""
    lines, at = [], 0
    while at < len(body):
        decoded = next(decoder.disasm(body[at : at + 4], address + at, 1), None)
        size = decoded.size if decoded is not None else 2
        text = (
            f"{decoded.mnemonic:8} {decoded.op_str}"
            if decoded is not None
            else f".short   0x{body[at : at + 2][::-1].hex()}"
        )
        lines.append(f"  {address + at:8x}  {body[at : at + size].hex():8}  {text}".rstrip())
        at += size
    return lines


# --- common -----------------------------------------------------------------------------------------------------------


def _planned(plan: Plan, layer: str | None) -> list[PlannedOp]:
    """Return the planned ops of a layer: more than one where it runs in stages."""
    found = [op for op in plan.ops if layer is None or layer in (op.name, op.call.op.name, op.output)]
    if not found:
        raise _no_layer(plan.graph.name, str(layer), (op.name for op in plan.ops))
    return found


def _no_layer(model: str, layer: str, names: Iterable[str]) -> ModelError:
    return ModelError(f"{model} has no layer {layer!r} at this stage; it has {', '.join(names)}.")


def _by(numbers: Sequence[int]) -> str:
    return "x".join(str(int(number)) for number in numbers)


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"


def _aligned(rows: Sequence[Sequence[str]], right: set[int]) -> list[str]:
    """Return rows as lines with columns of equal width.

    >>> _aligned([("a", "n"), ("bc", "10")], right={1})
    ['a    n', 'bc  10']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return lines
