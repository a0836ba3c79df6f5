"""Which kernel each op gets, and how its tensors lie for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from codegen import reduction
from codegen.call import Arithmetic, Call
from codegen.kernel import Kernel, Needs, wide
from codegen.kernels import candidates
from codegen.layout import INDICES32, PLANAR8, PLANAR16, SUMS32, WIDE8, WIDE16, Layout, Storage, align4
from codegen.targets import Target
from mnet import pairs
from mnet.elementwise import table
from mnet.errors import PlanError
from mnet.graph import (
    Binary,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Op,
    Reduce,
    Reduction,
    Softmax,
    Tensor,
    Unary,
    inputs_of,
)
from mnet.oracle import Oracle, Requantization, requantization
from mnet.reductions import softmax_arithmetic, sum_arithmetic


@dataclass(frozen=True)
class Stage:
    """One op, or one stage of it, with its kernel."""

    name: str
    op: Op
    kernel: Kernel
    inputs: tuple[str, ...]
    output: str
    rows: int  # per call
    calls: int
    reads_whole: bool  # reads its whole input in one call, so that every row needs a slot


def stages_of(graph: Graph, target: Target, largest_map: float) -> tuple[list[Stage], dict[str, Tensor]]:
    """Choose a kernel for each op; return the stages and all tensors, the sums between pooling stages included.

    Where the maps of an op have at most `largest_map` pixels and its kernel can, one call makes all rows.
    """
    tensors = dict(graph.tensors)
    stages: list[Stage] = []
    for op in graph.ops:
        height = tensors[op.output].shape[0]
        pair = reduction.stages(op, graph, target)
        if pair:
            sums = Tensor(f"{op.output}/sums", tensors[op.output].shape, 1.0, 0)
            tensors[sums.name] = sums
            calls = tensors[inputs_of(op)[0]].shape[0]
            stages.append(Stage(f"{op.name}_sum", op, pair[0], inputs_of(op), sums.name, 0, calls, False))
            stages.append(Stage(op.name, op, pair[1], (sums.name,), op.output, 1, 1, True))
            continue
        kernel = _choose(op, graph, target)
        pixels = max(math.prod(tensors[name].shape[:2]) for name in (*inputs_of(op), op.output))
        together = kernel.can_be_whole(op, graph) and pixels <= largest_map
        rows = height if kernel.only_whole or together else 1
        whole = kernel.needs(op, graph, target).whole
        stages.append(Stage(op.name, op, kernel, inputs_of(op), op.output, rows, height // rows, whole))
    return stages, tensors


def _choose(op: Op, graph: Graph, target: Target) -> Kernel:
    """Return the first kernel that accepts `op`, whose layout its neighbours can write and share.

    Raises:
        PlanError: no kernel takes it.
    """
    interleaved = wide(target)
    for kernel in candidates(op, graph, target):
        layout = kernel.needs(op, graph, target).layout
        if layout == interleaved or _can_have(op, graph, target, layout):
            return kernel
    raise PlanError(f"{graph.name}, {op.name} ({type(op).__name__}): no kernel for {target.name}")


def _can_have(op: Op, graph: Graph, target: Target, layout: Layout) -> bool:
    """Return whether the input of `op` can lie in `layout`: nobody else reads it, and its producer can write it."""
    (name,) = inputs_of(op)
    if len(graph.consumers(name)) > 1 or name in graph.outputs:
        return False
    producer = next((other for other in graph.ops if other.output == name), None)
    if producer is None:
        return True
    pair = reduction.stages(producer, graph, target)
    if pair:
        return layout.name in pair[1].writes
    return all(layout.name in kernel.writes for kernel in candidates(producer, graph, target)[:1])


def alternatives(stage: Stage, graph: Graph, target: Target) -> Sequence[Kernel]:
    """Return the kernels that may run a stage: its own, and those with a price that make as many rows in a call."""
    others = candidates(stage.op, graph, target)
    if stage.kernel not in others:  # one of two stages
        return [stage.kernel]
    may = [
        kernel
        for kernel in others
        if kernel is stage.kernel
        or (kernel.cost and stage.kernel.cost and (stage.rows == 1 or kernel.can_be_whole(stage.op, graph)))
    ]
    return may


def _needs(reader: Stage, layout: Layout, graph: Graph, target: Target) -> Needs | None:
    """Return what a stage asks of an input in some layout; None where no kernel reads it."""
    kernels = alternatives(reader, graph, target)
    kernel = next((kernel for kernel in kernels if layout.name in kernel.reads), None)
    if kernel is None:
        return None
    needs = kernel.needs(reader.op, graph, target)
    if kernel.ring_of_window and reader.rows > 1:  # knows its edges
        return replace(needs, padding=(0, 0, *needs.padding[2:]))
    return needs


def storages_of(
    graph: Graph, target: Target, stages: Sequence[Stage], tensors: Mapping[str, Tensor]
) -> dict[str, tuple[Storage, ...]]:
    """Return how each tensor may lie, every row with a slot of its own: layout and padding as its readers need them.

    The first is what the first kernels of its readers ask for. More than one where there are DSP instructions.
    """
    made = {*graph.inputs, *(stage.output for stage in stages)}
    storages = {}
    for name, tensor in tensors.items():
        if name not in made:
            continue
        readers = [stage for stage in stages if name in stage.inputs]
        makers = [stage for stage in stages if stage.output == name]
        usual = readers[0].kernel.needs(readers[0].op, graph, target).layout if readers else wide(target)
        if any(stage.kernel.consumes_rows for stage in makers):
            usual = SUMS32
        if tensor.type == "int32":
            usual = INDICES32
        found = []
        for layout in _layouts(usual, tensor, graph, target):
            needs = [_needs(reader, layout, graph, target) for reader in readers]
            written = all(
                any(layout.name in kernel.writes for kernel in alternatives(maker, graph, target)) for maker in makers
            )
            if written and None not in needs:
                found.append(_storage(tensor, layout, [need for need in needs if need], name in graph.inputs, target))
        storages[name] = tuple(found)
    return storages


def _layouts(usual: Layout, tensor: Tensor, graph: Graph, target: Target) -> tuple[Layout, ...]:
    """Return the layouts that a tensor might have, its usual one first."""
    if usual.element_bytes == 4 or wide(target) is not WIDE16:
        return (usual,)
    others = [WIDE16, WIDE8]
    if usual.planar:
        others += [PLANAR16]
        if tensor.zero_point == PLANAR8.offset and tensor.name not in graph.inputs:
            others += [PLANAR8]
    return (usual, *(layout for layout in others if layout is not usual))


def _storage(tensor: Tensor, layout: Layout, needs: Sequence[Needs], taken: bool, target: Target) -> Storage:
    """Return a storage that does for all readers; `taken`: the tensor is an input of the network."""
    top, bottom, left, right = (max((need.padding[side] for need in needs), default=0) for side in range(4))
    channels = tensor.shape[2]
    if target.dsp and not taken and layout.element_bytes < 4:
        channels = align4(channels)  # the blocks of the DSP kernels; the rest meets zero weights
    return Storage(
        tensor=tensor,
        layout=layout,
        slots=top + tensor.shape[0] + bottom,
        top=top,
        bottom=bottom,
        left=left,
        right=right,
        stored_channels=channels,
        columns_with_rows=taken and not layout.planar and bool(left or right),
        # only pairs of 16 bits are read over the end
        slack_bytes=max((need.slack_bytes for need in needs), default=0) if layout.element_bytes == 2 else 0,
    )


def _arithmetic(op: Op, graph: Graph, oracle: Oracle) -> tuple[Requantization | None, Arithmetic | None]:
    match op:
        case Conv2D() | DepthwiseConv2D() | FullyConnected():
            return requantization(op, graph, oracle), None
        case Unary():
            return None, table(op, graph, oracle)
        case Binary():
            return None, pairs.table(op, graph, oracle) if pairs.is_table(op) else pairs.binary_arithmetic(
                op, graph, oracle
            )
        case Reduce(function=Reduction.MEAN | Reduction.SUM):
            return None, sum_arithmetic(op, graph, oracle)
        case Softmax():
            return None, softmax_arithmetic(op, graph)
        case _:
            return None, None


def call_of(stage: Stage, graph: Graph, oracle: Oracle, storages: Mapping[str, Storage]) -> Call:
    how, arithmetic = _arithmetic(stage.op, graph, oracle)
    source = graph.tensors[inputs_of(stage.op)[0]].shape
    return Call(
        op=stage.op,
        inputs=tuple(storages[name] for name in stage.inputs),
        output=storages[stage.output],
        rows=stage.rows,
        requantization=how,
        arithmetic=arithmetic,
        pooled=source[0] * source[1],
    )
