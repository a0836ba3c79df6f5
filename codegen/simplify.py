"""Exact rewrites of the graph before it is planned: whatever moves no bit and makes nothing goes.

Tensors keep their names, so that every row of the plan can still be compared with the golden model's tensors.
"""

from dataclasses import replace

from mnet.graph import (
    Add,
    AveragePool2D,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Mean,
    Op,
    Pad,
    Reshape,
    check_graph,
)


def simplify(graph: Graph) -> Graph:
    """Return an equal graph with fewer ops: paddings folded into convolutions, reshapes that move nothing dropped."""
    for rewrite in (_fold_paddings, _drop_reshapes):
        graph = check_graph(rewrite(graph))
    return graph


def _read_from(op: Op, old: str, new: str) -> Op:
    if isinstance(op, Add):
        first, second = (new if name == old else name for name in op.inputs)
        return replace(op, inputs=(first, second))
    return replace(op, input=new) if op.input == old else op


def _fold_paddings(graph: Graph) -> Graph:
    """Give the padding of each PAD to the convolutions that read it: both pad with the zero_point."""
    ops = list(graph.ops)
    for pad in [op for op in ops if isinstance(op, Pad)]:
        readers = [op for op in ops if pad.output in ((op.inputs) if isinstance(op, Add) else (op.input,))]
        if pad.output == graph.output or not all(isinstance(op, Conv2D | DepthwiseConv2D) for op in readers):
            continue
        folded: list[Op] = []
        for op in ops:
            if isinstance(op, Conv2D | DepthwiseConv2D) and op.input == pad.output:
                top, bottom, left, right = (a + b for a, b in zip(op.padding, pad.padding, strict=True))
                op = replace(op, input=pad.input, padding=(top, bottom, left, right))
            if op is not pad:
                folded.append(op)
        ops = folded
    return replace(graph, ops=tuple(ops))


def _drop_reshapes(graph: Graph) -> Graph:
    """Drop each RESHAPE whose readers see the same values in the same order either way."""
    output = graph.output
    ops = list(graph.ops)
    for reshape in [op for op in ops if isinstance(op, Reshape)]:
        source, target = graph.tensors[reshape.input], graph.tensors[reshape.output]
        same = source.shape == target.shape
        readers = graph.consumers(reshape.output)
        flat = all(isinstance(op, FullyConnected) for op in readers) and reshape.output != graph.output
        ends = reshape.output == graph.output and not readers and reshape.input != graph.input
        if not (same or flat or ends) or (reshape.input == graph.input and reshape.output == graph.output):
            continue
        output = reshape.input if output == reshape.output else output
        ops = [_read_from(op, reshape.output, reshape.input) for op in ops if op is not reshape]
        graph = replace(graph, ops=tuple(ops), output=output)
    return graph


def is_global(op: AveragePool2D | Mean, graph: Graph) -> bool:
    """Return whether `op` averages whole channels."""
    if isinstance(op, Mean):
        return True
    height, width, _ = graph.tensors[op.input].shape
    return op.kernel == (height, width) and op.padding == (0, 0, 0, 0)


