"""The chain of proof: oracle runtime == golden model == host C == emulated C, on every byte of every layer.

Generated C reports each row that it makes (the trace); a row is unpacked by the very Storage that planned it and
compared with the golden model's tensor. The host runs under poison: whatever the plan calls dead is overwritten with
random bytes.
"""

import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.plan import Plan
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, Int8Array, numbered
from mnet.oracle import Oracle, requantization
from mnet.trace import entries_of, rows_of


@dataclass(frozen=True)
class Mismatch:
    """The first byte of a tensor that differs."""

    tensor: str
    input: int  # which of the inputs
    row: int
    column: int
    channel: int
    got: int
    expected: int
    differing: int  # values of the tensor that differ, over all inputs
    values: int  # compared
    arithmetic: str = ""  # how the expected value comes about


@dataclass(frozen=True)
class Compared:
    """What was compared of one tensor, over all inputs."""

    tensor: str
    values: int
    differing: int


@dataclass(frozen=True)
class Leg:
    """One comparison of the chain."""

    name: str
    status: str  # equal, differs, failed, not run
    inputs: int = 0
    tensors: int = 0
    values: int = 0  # compared
    differing: int = 0
    reason: str = ""  # why it failed or was not run
    mismatches: tuple[Mismatch, ...] = ()
    compared: tuple[Compared, ...] = ()  # the same, tensor by tensor

    def only(self, tensors: Collection[str]) -> "Leg":
        """Return what the leg says of some tensors."""
        compared = tuple(entry for entry in self.compared if entry.tensor in tensors)
        if self.status not in ("equal", "differs"):
            return self
        differing = sum(entry.differing for entry in compared)
        return replace(
            self,
            status="differs" if differing else "equal",
            tensors=len(compared),
            values=sum(entry.values for entry in compared),
            differing=differing,
            mismatches=tuple(entry for entry in self.mismatches if entry.tensor in tensors),
            compared=compared,
        )


class Comparison:
    """Adds up comparisons of one leg, tensor by tensor."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs = 0
        self.values: dict[str, int] = {}
        self.differing: dict[str, int] = {}
        self.first: dict[str, tuple[int, int, int, int, int, int]] = {}

    def compare(
        self,
        tensor: str,
        number: int,
        row: int,
        got: npt.NDArray[np.integer],
        expected: npt.NDArray[np.integer],
        live: Sequence[int] = (),
    ) -> None:
        """Compare rows [rows, width, channels] that start at `row` of `tensor`, for input `number`.

        `live` are the channels of the file's tensor that these are, where simplification dropped some.
        """
        self.values[tensor] = self.values.get(tensor, 0) + expected.size
        wrong = got != expected
        if not wrong.any():
            return
        self.differing[tensor] = self.differing.get(tensor, 0) + int(wrong.sum())
        if tensor not in self.first:
            y, x, c = (int(index) for index in np.argwhere(wrong)[0])
            channel = live[c] if live else c
            self.first[tensor] = (number, row + y, x, channel, int(got[y, x, c]), int(expected[y, x, c]))

    def leg(self) -> Leg:
        """Return what was found."""
        mismatches = tuple(
            Mismatch(tensor, *first, self.differing[tensor], self.values[tensor])
            for tensor, first in self.first.items()
        )
        differing = sum(self.differing.values())
        return Leg(
            self.name,
            "differs" if differing else "equal",
            self.inputs,
            len(self.values),
            sum(self.values.values()),
            differing,
            "",
            mismatches,
            tuple(Compared(tensor, values, self.differing.get(tensor, 0)) for tensor, values in self.values.items()),
        )


def compare_tensors(name: str, graph: Graph, got: Mapping[str, Int8Array], expected: Mapping[str, Int8Array]) -> Leg:
    """Compare whole tensors [n, height, width, channels], all that both know."""
    comparison = Comparison(name)
    comparison.inputs = len(next(iter(expected.values())))
    for tensor, values in expected.items():
        if tensor in got:
            for number in range(len(values)):
                comparison.compare(tensor, number, 0, got[tensor][number], values[number])
    return comparison.leg()


def compare_trace(
    comparison: Comparison, plan: Plan, trace: bytes, golden: Mapping[str, Int8Array], first_input: int
) -> None:
    """Compare the trace of some inputs with the golden tensors of the same inputs.

    Raises:
        ToolError: the trace is not complete: a row is missing, or a run is.
    """
    runs = len(golden[plan.graph.inputs[0]])
    labels = dict(zip(plan.graph.outputs, output_labels(plan.graph), strict=True))
    for made in rows_of(plan, trace, runs):
        name = labels[made.tensor] if made.is_answer else made.tensor
        rows = golden[made.tensor][made.number, made.row : made.row + len(made.values)]
        live = () if made.is_answer else plan.storage[made.tensor].tensor.live
        comparison.compare(name, first_input + made.number, made.row, made.values, rows, live)
    comparison.inputs += runs


def output_labels(graph: Graph) -> tuple[str, ...]:
    """Return what proofs call the copies of the outputs that the caller gets."""
    return numbered("output", len(graph.outputs))


def input_bytes(graph: Graph, tensors: Mapping[str, Int8Array]) -> bytes:
    """Return what a harness reads: for each run all inputs, one after the other."""
    images = [tensors[name].reshape(len(tensors[name]), -1) for name in graph.inputs]
    return np.concatenate(images, axis=1).tobytes()


def arithmetic_of(graph: Graph, oracle: Oracle, tensors: Mapping[str, Int8Array], mismatch: Mismatch) -> str:
    """Return the accumulator and the constants that the expected value was made of, or "" where there are none.

    Args:
        graph: as it stands in the file.
        oracle: whose rounding.
        tensors: of the golden model.
        mismatch: the place.
    """
    op = next((op for op in graph.ops if op.output == mismatch.tensor), None)
    if not isinstance(op, Conv2D | DepthwiseConv2D | FullyConnected):
        return ""
    channel = mismatch.channel
    source = tensors[op.input][mismatch.input].astype(np.int64) - graph.tensors[op.input].zero_point
    if isinstance(op, FullyConnected):
        products = source.reshape(-1) * op.weights[channel]
    else:
        is_depthwise = isinstance(op, DepthwiseConv2D)
        weights = op.weights[..., channel, None] if isinstance(op, DepthwiseConv2D) else op.weights[channel]
        first = channel // op.depth_multiplier if isinstance(op, DepthwiseConv2D) else 0
        seen = source[..., first : first + 1] if is_depthwise else source
        top, bottom, left, right = op.padding
        seen = np.pad(seen, ((top, bottom), (left, right), (0, 0)))
        rows = mismatch.row * op.stride[0] + np.arange(weights.shape[0]) * op.dilation[0]
        columns = mismatch.column * op.stride[1] + np.arange(weights.shape[1]) * op.dilation[1]
        products = seen[np.ix_(rows, columns)] * weights
    how = requantization(op, graph, oracle)
    return (
        f"accumulator {int(products.sum()) + int(op.bias[channel])}, multiplier {how.multiplier[channel]}, "
        f"shift {how.shift[channel]}"
    )


def kept_channels(plan: Plan, golden: Mapping[str, Int8Array]) -> dict[str, Int8Array]:
    """Return the golden tensors of a plan, without the channels that simplification dropped."""
    kept = {}
    for name, values in golden.items():
        if name in plan.storage:
            live = plan.storage[name].tensor.live
            kept[name] = values[..., list(live)] if live else values
    return kept


def compare_constants(name: str, graph: Graph, golden: Mapping[str, Int8Array]) -> Leg:
    """Compare the channels that simplification folded away with what the golden model makes of them."""
    comparison = Comparison(name)
    comparison.inputs = len(golden[graph.inputs[0]])
    for tensor in graph.tensors.values():
        if tensor.constants and tensor.name in golden:
            channels = [channel for channel, _ in tensor.constants]
            values = np.array([value for _, value in tensor.constants], np.int8)
            for number, expected in enumerate(golden[tensor.name][..., channels]):
                got = np.broadcast_to(values, expected.shape)
                comparison.compare(tensor.name, number, 0, got, expected, channels)
    return comparison.leg()


def vectors(plan: Plan, golden: Mapping[str, Int8Array]) -> bytes:
    """Return the file that the generated folder's own test compares with: masks, inputs, expected rows, outputs."""
    entries = entries_of(plan)
    golden = kept_channels(plan, golden)
    count = len(golden[plan.graph.inputs[0]])
    parts = [b"mnet" + plan.graph.model_hash[:8].encode() + struct.pack("<I", count)]
    for tensor, _, _, rows in entries:
        if rows:
            shape = plan.storage[tensor].tensor.shape
            parts.append(plan.storage[tensor].pack(np.zeros((rows, *shape[1:]), np.int8))[1])
    for number in range(count):
        parts += [golden[name][number].tobytes() for name in plan.graph.inputs]
        done = [0] * len(entries)
        for step in plan.schedule:
            index = step if step >= 0 else len(plan.entries) + ~step
            tensor, first_row, row_step, rows = entries[index]
            row = first_row + done[index] * row_step
            done[index] += 1
            if rows:
                parts.append(plan.storage[tensor].pack(golden[tensor][number, row : row + rows])[0])
        parts += [golden[name][number].tobytes() for name in plan.graph.outputs]
    return b"".join(parts)


def random_inputs(graph: Graph, count: int, seed: int) -> dict[str, Int8Array]:
    """Return for each input int8 [count, height, width, channels]: noise, smooth, saturated and constant in turn."""
    made = {}
    for which, name in enumerate(graph.inputs):
        shape = graph.tensors[name].shape
        made[name] = np.stack([_random_image(shape, number, (seed, number, which)) for number in range(count)])
    return made


def _random_image(shape: tuple[int, int, int], kind: int, seed: tuple[int, ...]) -> Int8Array:
    rng = np.random.default_rng(seed)
    image: npt.NDArray[Any]
    match kind % 4:
        case 0:
            image = rng.integers(-128, 128, shape)
        case 1:
            image = np.cumsum(rng.normal(size=shape), axis=0) * 15 + rng.normal(size=shape) * 20
        case 2:
            image = np.where(rng.random(shape) < 0.5, -128, 127)
        case _:
            image = np.full(shape, rng.integers(-128, 128)) + rng.integers(-2, 3, shape)
    return np.clip(image, -128, 127).astype(np.int8)


Run = Callable[[bytes], bytes]  # inputs -> trace


def run_leg(
    name: str,
    plan: Plan,
    golden: Mapping[str, Int8Array],
    run: Run,
    progress: Callable[[int], None] = lambda inputs: None,
    chunk: int = 10,
) -> Leg:
    """Run generated C on the golden model's inputs, some at a time, and compare all that it made."""
    comparison = Comparison(name)
    golden = kept_channels(plan, golden)
    for start in range(0, len(golden[plan.graph.inputs[0]]), chunk):
        part = {tensor: values[start : start + chunk] for tensor, values in golden.items()}
        compare_trace(comparison, plan, run(input_bytes(plan.graph, part)), part, start)
        progress(len(part[plan.graph.inputs[0]]))
    return comparison.leg()
