"""Drop what no input can change, exactly: channels that always hold one value, and channels that nobody reads.

Forward, interval analysis: the smallest and the largest value of each channel follow from those of the channels before,
because every op is monotone in its accumulator, or has a table of 256 results. Where the two meet the channel is
constant. Padding reads as the zero_point, so 0 joins the interval of every padded tap: a constant of a padded layer
holds at the borders, too.
Backward, liveness: a channel is needed where a needed channel reads it with a nonzero weight and cannot fold it into
its bias. A constant folds where every tap sees it: there is no padding, or it is the zero_point.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from mnet import elementwise
from mnet.graph import (
    ArgMax,
    AveragePool2D,
    Binary,
    BinaryFunction,
    Concat,
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Gather,
    Graph,
    Int8Array,
    L2Normalization,
    MaxPool2D,
    Op,
    Pad,
    Rearrange,
    Reduce,
    Reduction,
    Reshape,
    Resize,
    Softmax,
    Unary,
    check_graph,
    inputs_of,
)
from mnet.oracle import Oracle, requantization, requantize
from mnet.pairs import binary, binary_arithmetic, quantizations
from mnet.reductions import from_sums, sum_arithmetic

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
CHANNELS = 2  # the axis


@dataclass(frozen=True, eq=False)
class Interval:
    """The values that each channel of a tensor can take."""

    low: Int64Array  # [channels]
    high: Int64Array  # [channels]

    @property
    def constant(self) -> BoolArray:
        """Return which channels hold one value, everywhere and for every input."""
        return np.asarray(self.low == self.high)


def _everything(channels: int) -> Interval:
    return Interval(np.full(channels, -128, np.int64), np.full(channels, 127, np.int64))


def _accumulators(
    op: Conv2D | DepthwiseConv2D | FullyConnected, graph: Graph, source: Interval
) -> tuple[Int64Array, ...]:
    """Return the least and the greatest accumulator of each output channel."""
    zero_point = graph.tensors[op.input].zero_point
    low, high = source.low - zero_point, source.high - zero_point
    if not isinstance(op, FullyConnected) and any(op.padding):
        low, high = np.minimum(low, 0), np.maximum(high, 0)
    weights = op.weights.astype(np.int64)
    match op:
        case Conv2D():
            products = [weights * low, weights * high]
        case DepthwiseConv2D():
            products = [weights * np.repeat(end, op.depth_multiplier) for end in (low, high)]
        case FullyConnected():
            pixels = weights.shape[1] // len(low)
            products = [weights * np.tile(end, pixels) for end in (low, high)]
    axes = (0, 1) if isinstance(op, DepthwiseConv2D) else tuple(range(1, weights.ndim))
    bias = op.bias.astype(np.int64)
    return bias + np.minimum(*products).sum(axis=axes), bias + np.maximum(*products).sum(axis=axes)


def _output_interval(op: Op, graph: Graph, oracle: Oracle, sources: tuple[Interval, ...]) -> Interval:
    source = sources[0]
    match op:
        case Conv2D() | DepthwiseConv2D() | FullyConnected():
            how = requantization(op, graph, oracle)
            ends = [requantize(end, how).astype(np.int64) for end in _accumulators(op, graph, source)]
        case AveragePool2D() | MaxPool2D():
            ends = [np.clip(end, *op.activation) for end in (source.low, source.high)]
        case Resize():
            ends = [source.low, source.high]
        case Reduce():
            ends = _reduced(op, graph, oracle, source)
        case Unary():
            ends = list(_image(elementwise.table(op, graph, oracle), source))
        case Binary(function=BinaryFunction.SQUARED_DIFFERENCE):
            return _everything(graph.tensors[op.output].shape[2])
        case Binary():
            ends = _of_pairs(op, graph, oracle, sources)
        case Pad():
            low, high = source.low, source.high
            if any(op.padding):
                low, high = np.minimum(low, op.value), np.maximum(high, op.value)
            ends = [np.pad(end, op.channels, constant_values=op.value) for end in (low, high)]
        case Concat() if op.axis == 2:
            ends = [np.concatenate([s.low for s in sources]), np.concatenate([s.high for s in sources])]
        case Concat():
            ends = [np.minimum.reduce([s.low for s in sources]), np.maximum.reduce([s.high for s in sources])]
        case Gather():
            ends = [source.low[list(op.channels)], source.high[list(op.channels)]]
        case Reshape() | Rearrange():
            if not _keeps_channels(op, len(source.low)):
                return Interval(*(np.full(op.shape[2], end) for end in (source.low.min(), source.high.max())))
            return source
        case ArgMax() | L2Normalization() | Softmax():
            return _everything(graph.tensors[op.output].shape[2])
        case _:
            assert_never(op)
    return Interval(*ends)


def _keeps_channels(op: Reshape | Rearrange, channels: int) -> bool:
    """Return whether every value stays in its channel."""
    if op.shape[2] != channels:
        return False
    last = len(op.view) - 1 if isinstance(op, Rearrange) else 0
    return isinstance(op, Reshape) or (op.permutation[last] == last and op.view[last] % channels == 0)


def _image(table: Int8Array, source: Interval) -> tuple[Int64Array, Int64Array]:
    """Return the least and the greatest of the results [256] of what each channel can hold."""
    images = [table[low + 128 : high + 129] for low, high in zip(source.low, source.high, strict=True)]
    return np.array([image.min() for image in images], np.int64), np.array([image.max() for image in images], np.int64)


def _reduced(op: Reduce, graph: Graph, oracle: Oracle, source: Interval) -> list[Int64Array]:
    """Return the smallest and the largest value of each output channel of a Reduce."""
    ends, over_channels = [source.low, source.high], CHANNELS in op.axes
    match op.function:
        case Reduction.MEAN | Reduction.SUM:
            how = sum_arithmetic(op, graph, oracle)
            values = [end.sum(keepdims=True) if over_channels else end for end in ends]
            times = how.count // len(source.low) if over_channels else how.count
            return [from_sums(times * value, how).astype(np.int64) for value in values]
        case Reduction.MAX:
            return [end.max(keepdims=True) for end in ends] if over_channels else ends
        case Reduction.MIN:
            return [end.min(keepdims=True) for end in ends] if over_channels else ends
        case _:
            assert_never(op.function)


def _of_pairs(op: Binary, graph: Graph, oracle: Oracle, sources: tuple[Interval, ...]) -> list[Int64Array]:
    """Return the smallest and the largest value of each output channel of a Binary.

    Each function rises or falls with each operand alone, for the other's every value; PRELU on either side of zero.
    """
    ends = [np.stack([source.low, source.high])[:, None, None] for source in sources]
    if op.function is BinaryFunction.PRELU:
        zero_point = quantizations(op, graph)[0].zero_point
        low, high = sources[0].low, sources[0].high
        near = [np.clip(value, low, high)[None, None, None] for value in (zero_point - 1, zero_point)]
        ends[0] = np.concatenate([ends[0], *near])
    constant = np.zeros((1, 1, 1), np.int64) if op.constant is None else op.constant.values.astype(np.int64)
    first, second = op.operands(ends, constant[None])
    made = binary(first[:, None].astype(np.int8), second[None].astype(np.int8), binary_arithmetic(op, graph, oracle))
    results = made.reshape(-1, made.shape[-1]).astype(np.int64)
    return [results.min(axis=0), results.max(axis=0)]


def intervals(graph: Graph, oracle: Oracle) -> dict[str, Interval]:
    """Return the values that each channel of each tensor can take, for any int8 input."""
    found = {name: _everything(graph.tensors[name].shape[2]) for name in graph.inputs}
    for op in graph.ops:
        found[op.output] = _output_interval(op, graph, oracle, tuple(found[name] for name in inputs_of(op)))
    return found


def _foldable(op: Conv2D | FullyConnected, graph: Graph, source: Interval) -> BoolArray:
    """Return which input channels `op` can take into its bias."""
    if isinstance(op, Conv2D) and any(op.padding):
        return np.asarray(source.constant & (source.low == graph.tensors[op.input].zero_point))
    return source.constant


def _read_channels(op: Conv2D | FullyConnected, outputs: BoolArray, channels: int) -> BoolArray:
    """Return which input channels the given output channels read with a nonzero weight."""
    weights = op.weights.reshape(len(outputs), -1, channels)[outputs]
    return np.asarray((weights != 0).any(axis=(0, 1)))


def live_channels(graph: Graph, oracle: Oracle) -> dict[str, BoolArray]:
    """Return for each tensor the channels that have to be computed.

    Ops that work channel by channel keep the same channels in and out.
    """
    known = intervals(graph, oracle)
    live = {name: np.zeros(graph.tensors[name].shape[2], bool) for name in known}
    for name in (*graph.inputs, *graph.outputs):
        live[name][:] = True
    changed = True
    while changed:
        before = {name: int(channels.sum()) for name, channels in live.items()}
        for op in reversed(graph.ops):
            _need(op, graph, known, live)
        changed = any(int(channels.sum()) != before[name] for name, channels in live.items())
        empty = [] if changed else [channels for channels in live.values() if not channels.any()]
        for channels in empty:
            channels[0] = True  # a tensor without channels would be no tensor; what it needs has to be right, too
        changed = changed or bool(empty)
    return live


def _need(op: Op, graph: Graph, known: Mapping[str, Interval], live: Mapping[str, BoolArray]) -> None:
    """Mark the channels that the live outputs of `op` need."""
    match op:
        case Conv2D() | FullyConnected():
            read = _read_channels(op, live[op.output], len(live[op.input]))
            live[op.input][:] |= read & ~_foldable(op, graph, known[op.input])
        case DepthwiseConv2D() if op.depth_multiplier > 1:
            live[op.output][:] = True
            live[op.input][:] = True
        case ArgMax():
            live[op.input][:] = True
        case Gather():
            live[op.input][np.array(op.channels)[live[op.output]]] = True
        case Pad():
            own = slice(op.channels[0], op.channels[0] + len(live[op.input]))
            live[op.input][:] |= live[op.output][own]
            live[op.output][own] = live[op.input]
        case Concat() if op.axis == 2:
            ends = np.cumsum([len(live[name]) for name in op.inputs])
            for name, part in zip(op.inputs, np.split(live[op.output], ends[:-1]), strict=True):
                live[name][:] |= part
                part[:] = live[name]
        case Reshape() | Rearrange() if not _keeps_channels(op, len(live[op.input])):
            for name in (op.input, op.output):
                live[name][:] = True
        case Reduce() if CHANNELS in op.axes:
            live[op.input][:] = True
        case (
            DepthwiseConv2D()
            | AveragePool2D()
            | MaxPool2D()
            | Resize()
            | Reduce()
            | Unary()
            | Concat()
            | Reshape()
            | Rearrange()
        ):
            together = live[op.output].copy()
            for name in inputs_of(op):
                together |= live[name]
            for name in (*inputs_of(op), op.output):
                live[name][:] = together
        case Binary():
            together = live[op.output].copy()
            wide = [name for name in op.inputs if len(live[name]) == len(together)]
            for name in wide:
                together |= live[name]
            for name in (*op.inputs, op.output):
                live[name][:] = together if name in wide or name == op.output else True
        case L2Normalization() | Softmax():
            for name in (op.input, op.output):
                live[name][:] = True
        case _:
            assert_never(op)


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = np.ascontiguousarray(array)
    copy.flags.writeable = False
    return copy


def _narrowed(op: Op, graph: Graph, known: Mapping[str, Interval], live: Mapping[str, BoolArray]) -> Op:
    """Return `op` over the live channels of its tensors."""
    kept = live[op.output]
    match op:
        case Conv2D() | FullyConnected():
            source = known[op.input]
            pixels = op.weights.size // len(op.bias) // len(live[op.input])
            weights = op.weights.reshape(len(op.bias), pixels, -1)[kept]
            folded = np.where(live[op.input], 0, source.low - graph.tensors[op.input].zero_point)
            bias = op.bias[kept] + (weights.astype(np.int64).sum(axis=1) * folded).sum(axis=1)
            assert np.abs(bias).max(initial=0) < 1 << 31, op.name
            shape = (len(bias), *op.weights.shape[1:-1], -1)
            return replace(
                op,
                weights=_frozen(weights[:, :, live[op.input]].reshape(shape)),
                bias=_frozen(bias.astype(np.int32)),
                weight_scales=_frozen(op.weight_scales[kept]),
            )
        case DepthwiseConv2D():
            return replace(
                op,
                weights=_frozen(op.weights[:, :, kept]),
                bias=_frozen(op.bias[kept]),
                weight_scales=_frozen(op.weight_scales[kept]),
            )
        case Binary(constant=constant) if constant is not None and constant.values.shape[2] > 1:
            return replace(op, constant=replace(constant, values=_frozen(constant.values[:, :, kept])))
        case Gather():
            place = np.cumsum(live[op.input]) - 1
            return replace(op, channels=tuple(int(place[c]) for c in np.array(op.channels)[kept]))
        case Pad():
            before, after = op.channels
            return replace(op, channels=(int(kept[:before].sum()), int(kept[len(kept) - after :].sum())))
        case Reshape():
            return replace(op, shape=(*op.shape[:2], int(kept.sum())))
        case Rearrange():
            last = op.view[-1] // len(kept) * int(kept.sum()) if not kept.all() else op.view[-1]
            return replace(op, view=(*op.view[:-1], last), shape=(*op.shape[:2], int(kept.sum())))
        case _:
            return op


def drop_dead_channels(graph: Graph, oracle: Oracle) -> Graph:
    """Return a graph of fewer channels that gives the same bits; `Tensor.live` says which ones of the file's are left.

    Channels that are dropped but read (constants) are folded into the bias of their readers. The analysis starts from
    channels as they are in `graph`, so it is for graphs straight from `simplify`.
    """
    known, live = intervals(graph, oracle), live_channels(graph, oracle)
    tensors = {}
    for name, tensor in graph.tensors.items():
        if name in live and not live[name].all():
            channels = tuple(int(channel) for channel in np.flatnonzero(live[name]))
            gone = np.flatnonzero(~live[name] & known[name].constant)
            constants = tuple((int(channel), int(known[name].low[channel])) for channel in gone)
            shape = (*tensor.shape[:2], len(channels))
            tensor = replace(tensor, shape=shape, live=channels, constants=constants)
        tensors[name] = tensor
    ops = tuple(_narrowed(op, graph, known, live) for op in graph.ops)
    return check_graph(replace(graph, tensors=tensors, ops=ops))
