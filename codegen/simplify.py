"""Exact rewrites of the graph before it is planned: whatever moves no bit and makes nothing goes.

Tensors keep their names, so that every row of the plan can still be compared with the golden model's tensors.
"""

from dataclasses import replace

from mnet.elementwise import clamp_of
from mnet.graph import (
    Binary,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    Op,
    Pad,
    Pool2D,
    Rearrange,
    Reshape,
    Unary,
    check_graph,
    inputs_of,
)
from mnet.movement import gather_of


def simplify(graph: Graph) -> Graph:
    """Return an equal graph with fewer ops: paddings folded into convolutions, what moves nothing dropped, clamps
    given to what makes their input."""
    for rewrite in (_merge_reshapes, _join_moves, _drop_moves, _fold_paddings, _drop_moves, _fold_clamps):
        graph = check_graph(rewrite(graph))
    return graph


def _read_from(op: Op, old: str, new: str) -> Op:
    if isinstance(op, Binary | Concat):
        return replace(op, inputs=tuple(new if name == old else name for name in op.inputs))
    return replace(op, input=new) if op.input == old else op


def _merge_reshapes(graph: Graph) -> Graph:
    """Let RESHAPEs around a RESHAPE or Rearrange be part of it: it sees its values in order, and makes them so."""
    makers = {op.output: op for op in graph.ops}
    ops: list[Op] = []
    for op in graph.ops:
        alone = isinstance(op, Reshape) and len(graph.consumers(op.input)) == 1 and op.input not in graph.outputs
        if isinstance(op, Reshape) and alone and isinstance(before := makers.get(op.input), Rearrange):
            ops.remove(before)
            op = replace(before, output=op.output, shape=op.shape)
        while isinstance(op, Reshape | Rearrange) and isinstance(before := makers.get(op.input), Reshape):
            op = replace(op, input=before.input)
        makers[op.output] = op
        ops.append(op)
    read = {*graph.outputs, *(name for op in ops for name in inputs_of(op))}
    return replace(graph, ops=tuple(op for op in ops if not isinstance(op, Reshape) or op.output in read))


def _join_moves(graph: Graph) -> Graph:
    """Let a chain of moves be one Gather where it is: UpSampling2D is a TILE among RESHAPEs, and repeats rows."""
    makers = {op.output: op for op in graph.ops}
    for last in reversed(graph.ops):
        chain: list[Gather | Reshape | Rearrange] = []
        op: Op | None = last
        while isinstance(op, Gather | Reshape | Rearrange):
            chain.insert(0, op)
            alone = len(graph.consumers(op.input)) == 1 and op.input not in graph.outputs
            op = makers.get(op.input) if alone else None
        for first in range(len(chain) - 1):
            joined = gather_of(chain[first:], last.name, graph.tensors[chain[first].input].shape)
            if joined:
                gone = {part.output for part in chain[first:]}
                kept = (
                    joined if part is last else part for part in graph.ops if part is last or part.output not in gone
                )
                return _join_moves(replace(graph, ops=tuple(kept)))
    return graph


def _fold_paddings(graph: Graph) -> Graph:
    """Give the padding of each PAD to the convolutions that read it: both pad with the zero_point."""
    while (pad := next((op for op in graph.ops if isinstance(op, Pad) and _folds(op, graph)), None)) is not None:
        graph = replace(graph, ops=tuple(_padded_itself(op, pad) for op in graph.ops if op is not pad))
    return graph


def _folds(pad: Pad, graph: Graph) -> bool:
    readers = graph.consumers(pad.output)
    of_zeros = pad.value == graph.tensors[pad.input].zero_point and not any(pad.channels)
    inside = of_zeros and pad.output not in graph.outputs
    return inside and all(isinstance(op, Conv2D | DepthwiseConv2D) for op in readers)


def _padded_itself(op: Op, pad: Pad) -> Op:
    if not isinstance(op, Conv2D | DepthwiseConv2D) or op.input != pad.output:
        return op
    top, bottom, left, right = (a + b for a, b in zip(op.padding, pad.padding, strict=True))
    return replace(op, input=pad.input, padding=(top, bottom, left, right))


def _drop_moves(graph: Graph) -> Graph:
    """Drop each op that moves nothing, and each RESHAPE whose readers see the same values in the same order."""
    while (found := next((op for op in graph.ops if _moves_nothing(op, graph)), None)) is not None:
        (source,) = inputs_of(found)
        ops = tuple(_read_from(op, found.output, source) for op in graph.ops if op is not found)
        outputs = tuple(source if name == found.output else name for name in graph.outputs)
        tensors = dict(graph.tensors)
        if found.output in graph.outputs:
            tensors[source] = replace(tensors[source], outside=tensors[found.output].outside)
        graph = replace(graph, tensors=tensors, ops=ops, outputs=outputs)
    return graph


def _moves_nothing(op: Op, graph: Graph) -> bool:
    if not isinstance(op, Pad | Concat | Gather | Reshape | Rearrange) or len(inputs_of(op)) > 1:
        return False
    (source,) = inputs_of(op)
    shape = graph.tensors[source].shape
    match op:
        case Pad():
            same = not any((*op.padding, *op.channels))
        case Gather():
            same = op.numbers == tuple(tuple(range(size)) for size in shape)
        case Concat():
            same = True
        case Reshape() | Rearrange():  # `rearrange` makes no Rearrange that keeps the order
            same = isinstance(op, Reshape) and shape == op.shape
    readers = graph.consumers(op.output)
    ends = op.output in graph.outputs
    if ends and (readers or source in (*graph.inputs, *graph.outputs)):  # a graph needs an op, and outputs that differ
        return False
    if isinstance(op, Reshape) and not same:
        return ends or all(isinstance(reader, FullyConnected) for reader in readers)  # the caller sees bytes
    return same


def _fold_clamps(graph: Graph) -> Graph:
    """Give each RELU (RELU6, ...) that does not rescale to the op that makes its input, if nobody else reads that."""
    makers = {op.output: op for op in graph.ops}
    for clamp in graph.ops:
        if isinstance(clamp, Unary) and (bounds := _bounds(clamp, graph)) and graph.consumers(clamp.input) == (clamp,):
            maker = makers.get(clamp.input)
            if isinstance(maker, _Clamping) and clamp.input not in graph.outputs:
                low, high = (max(maker.activation[0], bounds[0]), min(maker.activation[1], bounds[1]))
                if low <= high:
                    together = replace(maker, output=clamp.output, activation=(low, high))
                    kept = tuple(together if op is maker else op for op in graph.ops if op is not clamp)
                    return _fold_clamps(replace(graph, ops=kept))
    return graph


_Clamping = Conv2D | DepthwiseConv2D | FullyConnected | Pool2D | Binary  # ends with a clamp of its own


def _bounds(op: Unary, graph: Graph) -> tuple[int, int] | None:
    """Return the clamp that is all that `op` does, if that is so; every oracle agrees there."""
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    if (source.scale, source.zero_point) != (target.scale, target.zero_point):
        return None
    return clamp_of(op.function, target.scale, target.zero_point)
