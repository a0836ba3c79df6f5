"""Where two sides part: their tensors compared layer by layer, and why the first that differs does."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mnet import golden
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, Int32Array, Op, inputs_of, numbered
from mnet.oracle import LITERT, ORACLES, requantization
from mnet.roundings import rounding_of
from mnet.sides import Seen, Side


@dataclass(frozen=True)
class Place:
    """A value that differs."""

    row: int
    column: int
    channel: int
    a: int
    b: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One tensor, as both sides made it. Differences are b - a in quantized steps."""

    name: str  # of the op that makes it
    operator: str
    tensor: str
    shape: tuple[int, int, int]
    folded: tuple[str, ...]  # sides that do not make it
    absent_channels: int  # that one of them does not make: nobody reads them
    differences: Int32Array | None  # [height, width, channels], 0 where a side has no value; None where one is folded
    compared: int  # values that both have
    differing: int
    largest: int  # |difference|
    mean: float  # |difference| over all that was compared
    first: Place | None

    @property
    def status(self) -> str:
        """Return equal, differs or folded."""
        return "folded" if self.folded else "differs" if self.differing else "equal"

    @property
    def share(self) -> float:
        """Return which part of the values differs."""
        return self.differing / self.compared if self.compared else 0.0


def layers_of(graph: Graph, a: Side, b: Side) -> tuple[Layer, ...]:
    """Compare the tensors of both sides in the order in which they are made, the inputs first.

    Args:
        graph: as it stands in the file.
        a: one side.
        b: the other, for the same input.
    """
    labels = numbered("input", len(graph.inputs))
    makers = [(label, "", name) for label, name in zip(labels, graph.inputs, strict=True)]
    makers += [(op.name, type(op).__name__, op.output) for op in graph.ops]
    return tuple(_layer(graph, name, operator, tensor, a, b) for name, operator, tensor in makers)


def _layer(graph: Graph, name: str, operator: str, tensor: str, a: Side, b: Side) -> Layer:
    shape = graph.tensors[tensor].shape
    folded = tuple(side.name for side in (a, b) if tensor not in side.tensors)
    if folded:
        return Layer(name, operator, tensor, shape, folded, 0, None, 0, 0, 0, 0.0, None)
    one, other = a.tensors[tensor], b.tensors[tensor]
    known = one.known & other.known
    differences = np.where(known, other.values - one.values, 0).astype(np.int32)
    places = _places(one, other, differences, 1)
    sizes, compared = np.abs(differences), int(known.sum()) * shape[0] * shape[1]
    return Layer(
        name,
        operator,
        tensor,
        shape,
        (),
        int((~known).sum()),
        differences,
        compared,
        int((differences != 0).sum()),
        int(sizes.max(initial=0)),
        float(sizes.sum()) / max(compared, 1),
        places[0] if places else None,
    )


def _places(a: Seen, b: Seen, differences: npt.NDArray[np.integer], most: int) -> tuple[Place, ...]:
    return tuple(
        Place(int(y), int(x), int(c), int(a.values[y, x, c]), int(b.values[y, x, c]))
        for y, x, c in np.argwhere(differences)[:most]
    )


def places_of(layer: Layer, a: Side, b: Side, most: int) -> tuple[Place, ...]:
    """Return the first places where a layer differs, row by row, at most so many."""
    if layer.differences is None:
        return ()
    return _places(a.tensors[layer.tensor], b.tensors[layer.tensor], layer.differences, most)


def first_of(layers: tuple[Layer, ...]) -> Layer | None:
    """Return the first layer that differs, None where all are equal."""
    return next((layer for layer in layers if layer.differing), None)


def explain(graph: Graph, a: Side, b: Side, layers: tuple[Layer, ...]) -> str:
    """Say in one sentence where the first difference arises, and why, as far as that is known; "" where all are equal.

    Args:
        graph: as it stands in the file.
        a: one side.
        b: the other.
        layers: all of them.
    """
    layer = first_of(layers)
    if layer is None or layer.first is None:
        return ""
    place = layer.first
    op = next((op for op in graph.ops if op.output == layer.tensor), None)
    kind = f" ({layer.operator})" if layer.operator else ""
    where = (
        f"The first difference arises in {layer.name}{kind} at row {place.row}, column {place.column}, channel "
        f"{place.channel}{_read(op, layers) if op else ''}: {a.name} has {place.a}, {b.name} has {place.b}"
    )
    if op is None:
        return f"{where}; both were to get the same input."
    return f"{where}{_accumulator(op, graph, a, place)}; {_why(op, a, b)}."


def _accumulator(op: Op, graph: Graph, side: Side, place: Place) -> str:
    """Return the real value that both sides round, where the op has an accumulator and all of its input is known."""
    if not isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected):
        return ""
    source = side.tensors.get(op.input)
    if source is None or not source.known.all():
        return ""
    sums = golden.accumulate(op, graph, source.values[None].astype(np.int8))
    total = int(sums[0, place.row, place.column, place.channel])
    scale = requantization(op, graph, ORACLES.get(side.rounding, LITERT)).scale[place.channel]
    zero_point = graph.tensors[op.output].zero_point
    return f", of {total} * {scale:.7g} {zero_point:+d} = {total * scale + zero_point:.6f}"


def _read(op: Op, layers: tuple[Layer, ...]) -> str:
    """Say what is known of the tensors that an op reads: none of them differs, or it would have been the first."""
    read = [layer for layer in layers if layer.tensor in inputs_of(op)]
    if any(layer.folded or layer.absent_channels for layer in read):
        return ""
    return " from equal inputs"


def _why(op: Op, a: Side, b: Side) -> str:
    first, second = rounding_of(op, a.rounding), rounding_of(op, b.rounding)
    if a.rounding == b.rounding:
        return "both are to give the same bits, so one of them is wrong: please report it"
    if first and second and first != second:
        return f"{a.rounding} takes {first}; {b.rounding} takes {second}"
    return f"how {a.rounding} and {b.rounding} differ in {type(op).__name__} is not written down in mnet"


def as_json(layer: Layer) -> Mapping[str, object]:
    """Return a layer as plain values."""
    return {
        "layer": layer.name,
        "operator": layer.operator,
        "tensor": layer.tensor,
        "shape": list(layer.shape),
        "status": layer.status,
        "folded": list(layer.folded),
        "absent_channels": layer.absent_channels,
        "compared": layer.compared,
        "differing": layer.differing,
        "share": layer.share,
        "largest": layer.largest,
        "mean": layer.mean,
        "first": vars(layer.first) if layer.first else None,
    }
