"""Exact rewrites of the graph before it is planned: whatever moves no bit and makes nothing goes.

Tensors keep their names, so that every row of the plan can still be compared with the golden model's tensors.
"""

from dataclasses import replace

from mnet.elementwise import clamp_of
from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Op,
    Pad,
    Reshape,
    Unary,
    check_graph,
)


def simplify(graph: Graph) -> Graph:
    """Return an equal graph with fewer ops: paddings folded into convolutions, reshapes that move nothing dropped,
    clamps given to what makes their input."""
    for rewrite in (_fold_paddings, _drop_reshapes, _fold_clamps):
        graph = check_graph(rewrite(graph))
    return graph


def _read_from(op: Op, old: str, new: str) -> Op:
    if isinstance(op, Add):
        first, second = (new if name == old else name for name in op.inputs)
        return replace(op, inputs=(first, second))
    return replace(op, input=new) if op.input == old else op


def _fold_paddings(graph: Graph) -> Graph:
    """Give the padding of each PAD to the convolutions that read it: both pad with the zero_point."""
    while (pad := next((op for op in graph.ops if isinstance(op, Pad) and _folds(op, graph)), None)) is not None:
        graph = replace(graph, ops=tuple(_padded_itself(op, pad) for op in graph.ops if op is not pad))
    return graph


def _folds(pad: Pad, graph: Graph) -> bool:
    readers = graph.consumers(pad.output)
    return pad.output not in graph.outputs and all(isinstance(op, Conv2D | DepthwiseConv2D) for op in readers)


def _padded_itself(op: Op, pad: Pad) -> Op:
    if not isinstance(op, Conv2D | DepthwiseConv2D) or op.input != pad.output:
        return op
    top, bottom, left, right = (a + b for a, b in zip(op.padding, pad.padding, strict=True))
    return replace(op, input=pad.input, padding=(top, bottom, left, right))


def _drop_reshapes(graph: Graph) -> Graph:
    """Drop each RESHAPE whose readers see the same values in the same order either way."""
    while (
        reshape := next((op for op in graph.ops if isinstance(op, Reshape) and _moves_nothing(op, graph)), None)
    ) is not None:
        ops = tuple(_read_from(op, reshape.output, reshape.input) for op in graph.ops if op is not reshape)
        outputs = tuple(reshape.input if name == reshape.output else name for name in graph.outputs)
        graph = replace(graph, ops=ops, outputs=outputs)
    return graph


def _moves_nothing(reshape: Reshape, graph: Graph) -> bool:
    readers = graph.consumers(reshape.output)
    if reshape.output in graph.outputs:  # the caller sees bytes; a graph needs an op, and outputs that differ
        return not readers and reshape.input not in (*graph.inputs, *graph.outputs)
    same = graph.tensors[reshape.input].shape == graph.tensors[reshape.output].shape
    return same or all(isinstance(op, FullyConnected) for op in readers)


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


_Clamping = Conv2D | DepthwiseConv2D | FullyConnected | AveragePool2D | Add  # ends with a clamp of its own


def _bounds(op: Unary, graph: Graph) -> tuple[int, int] | None:
    """Return the clamp that is all that `op` does, if that is so; every oracle agrees there."""
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    if (source.scale, source.zero_point) != (target.scale, target.zero_point):
        return None
    return clamp_of(op.function, target.scale, target.zero_point)
