"""The golden model: a network in NumPy, in the very integers of an oracle.

Sums of products are made by BLAS in floating point, and exactly: every partial sum is an integer below 2**53 (2**24
where float32 is used), so no order of summation can round. Everything after them is integer arithmetic.
"""

from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from mnet import elementwise, pairs, reductions, windows
from mnet import oracle as arithmetic
from mnet.graph import (
    ArgMax,
    AveragePool2D,
    Binary,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    Int8Array,
    Int32Array,
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
)
from mnet.movement import move
from mnet.oracle import Oracle

_BATCH = 16  # inputs computed together; more only costs memory


def accumulate(op: Conv2D | DepthwiseConv2D | FullyConnected, graph: Graph, x: Int8Array) -> Int32Array:
    """Return the int32 accumulators [n, height, width, channels_out] of `op`, bias included, for x [n, h, w, c]."""
    bound = arithmetic.accumulator_bound(op, graph).max(initial=0)
    exact: type[np.floating[Any]] = np.float32 if bound < 1 << 24 else np.float64
    offset = x.astype(np.int16) - np.int16(graph.tensors[op.input].zero_point)
    sums: Int32Array
    match op:
        case FullyConnected():
            products = offset.reshape(len(x), 1, 1, -1).astype(exact) @ op.weights.T.astype(exact)
            sums = products.astype(np.int32) + op.bias
        case Conv2D():
            seen = np.concatenate(windows.windows(op, offset.astype(exact)), axis=3)
            products = seen @ op.weights.reshape(len(op.bias), -1).T.astype(exact)
            sums = products.astype(np.int32) + op.bias
        case DepthwiseConv2D():
            offset = np.repeat(offset, op.depth_multiplier, axis=3)
            taps = op.weights.reshape(-1, len(op.bias)).astype(np.int32)
            sums = sum((window * tap for window, tap in zip(windows.windows(op, offset), taps, strict=True)), op.bias)
        case _:
            assert_never(op)
    return sums


def compute(op: Op, graph: Graph, oracle: Oracle, inputs: tuple[Int8Array, ...]) -> npt.NDArray[Any]:
    """Return the output [n, height, width, channels] of one op, of its tensor's type, for its inputs of that form."""
    x = inputs[0]
    match op:
        case Conv2D() | DepthwiseConv2D() | FullyConnected():
            return arithmetic.requantize(accumulate(op, graph, x), arithmetic.requantization(op, graph, oracle))
        case AveragePool2D():
            return windows.average_pool_2d(op, x)
        case MaxPool2D():
            return windows.max_pool_2d(op, x)
        case Resize():
            return windows.resize(op, x)
        case Reduce():
            return reductions.reduce(op, graph, oracle, x)
        case L2Normalization():
            return reductions.l2_normalize(x, graph.tensors[op.input].zero_point)
        case ArgMax():
            return reductions.arg_max(x)
        case Unary():
            return elementwise.table(op, graph, oracle)[x.astype(np.int16) + 128]
        case Binary():
            return pairs.compute(op, graph, oracle, inputs)
        case Pad() | Concat() | Gather() | Reshape() | Rearrange():
            return move(op, inputs)
        case Softmax():
            return reductions.softmax(x, reductions.softmax_arithmetic(op, graph))
        case _:
            assert_never(op)


def _count(graph: Graph, inputs: Mapping[str, Int8Array]) -> int:
    """Return how many images each input has, after checking all of them."""
    counts = set()
    for name in graph.inputs:
        if name not in inputs:
            raise ValueError(f"the input {name!r} is missing; there are {', '.join(inputs)}")
        shape, given = graph.tensors[name].shape, inputs[name]
        if given.dtype != np.int8 or given.shape[1:] != shape or given.ndim != 4:
            raise ValueError(
                f"{name!r} must be int8 [n, {', '.join(map(str, shape))}], not {given.dtype} {given.shape}"
            )
        counts.add(len(given))
    if len(counts) > 1:
        raise ValueError(f"the inputs have different numbers of images: {sorted(counts)}")
    return counts.pop()


def run(graph: Graph, oracle: Oracle, inputs: Mapping[str, Int8Array]) -> dict[str, Int8Array]:
    """Return every activation of the network, the inputs included, by tensor name.

    Args:
        graph: the network.
        oracle: whose rounding.
        inputs: int8 [n, height, width, channels] of each of the graph's inputs, by tensor name.

    Raises:
        ValueError: one is missing, or has another shape or type.
    """
    count = _count(graph, inputs)
    tensors = {name: np.array(inputs[name]) for name in graph.inputs}
    made = (graph.tensors[op.output] for op in graph.ops)
    tensors |= {tensor.name: np.empty((count, *tensor.shape), tensor.type) for tensor in made}
    for start in range(0, count, _BATCH):
        batch = slice(start, start + _BATCH)
        for op in graph.ops:
            tensors[op.output][batch] = compute(
                op, graph, oracle, tuple(tensors[name][batch] for name in inputs_of(op))
            )
    return tensors
