"""How each runtime comes from an accumulator to int8, in words, operator by operator: why two of them differ.

Of an oracle the words follow from its frozen value in `mnet.oracle`; of runtimes that are no oracle they are rows of
the table below. mnet/docs/runtimes.md says the same at length, with the test that shows each line.
"""

from collections.abc import Mapping
from typing import Any

from mnet.elementwise import unary_words
from mnet.graph import (
    Binary,
    BinaryFunction,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    FullyConnected,
    Op,
    Reduce,
    Reduction,
    Softmax,
    Unary,
    UnaryFunction,
)
from mnet.oracle import ORACLES, Oracle, ScaleProduct

_TWICE_UPWARDS = "saturating rounding doubling high multiply, then rounding shift with halves upwards"
_IN_FLOAT = "one product with the scale in single precision, rounded with halves to even"
_TABLE = "exponentials from a table in single precision"
_WORDS: Mapping[str, Mapping[type[Any], str]] = {
    "litert-optimised": {
        Conv2D: _TWICE_UPWARDS,
        DepthwiseConv2D: f"for channels in whole groups of eight {_TWICE_UPWARDS}, for the rest halves away from zero",
        FullyConnected: _TWICE_UPWARDS,
        Reduce: "the sum of quantized values times a multiplier, and an offset that was rounded on its own",
        Softmax: _TABLE,
    },
    "xnnpack": {
        Conv2D: _IN_FLOAT,
        DepthwiseConv2D: _IN_FLOAT,
        FullyConnected: _IN_FLOAT,
        Binary: "both inputs times multipliers of 21 bits, one shift of the sum with halves upwards",
        Reduce: "the sum times the scale plus the zero point in single precision, rounded with halves to even",
        Softmax: _TABLE,
    },
}


def rounding_of(op: Op, runtime: str) -> str:
    """Return the steps that `runtime` (an oracle, or another row of `mnet.runtimes`) takes, "" where none are known."""
    if runtime in ORACLES:
        return _of_oracle(op, ORACLES[runtime])
    if isinstance(op, Reduce) and (op.function is not Reduction.MEAN or op.axes != (0, 1)):
        return ""
    if isinstance(op, Binary) and op.function not in (BinaryFunction.ADD, BinaryFunction.SUB):
        return _IN_FLOAT if runtime == "xnnpack" and op.function is BinaryFunction.MUL else ""
    if isinstance(op, Unary) and runtime == "xnnpack":
        in_8_bits = op.function in (UnaryFunction.QUANTIZE, UnaryFunction.LEAKY_RELU)
        return "a multiplier with 8 fractional bits, one shift with halves upwards" if in_8_bits else ""
    kind = FullyConnected if isinstance(op, Conv2D) and op.dense else type(op)
    return _WORDS.get(runtime, {}).get(kind, "")


def _of_oracle(op: Op, oracle: Oracle) -> str:
    match op:
        case Conv2D(dense=None):
            return oracle.convolution.value
        case DepthwiseConv2D():
            return oracle.depthwise.value
        case Conv2D() | FullyConnected() if op.dense is Dense.PER_CHANNEL:
            return oracle.fully_connected_per_channel.value
        case Conv2D() | FullyConnected():
            in_float = oracle.fully_connected_scale is ScaleProduct.FLOAT32
            return oracle.fully_connected.value + (", the scales multiplied as float32" if in_float else "")
        case Unary():
            return f"{op.function.value}: {unary_words(op.function, oracle)}"
        case Binary(function=BinaryFunction.MAXIMUM | BinaryFunction.MINIMUM):
            return "one of the quantized values, whatever the scales"
        case Binary():
            return oracle.elementwise.value
        case Reduce(function=Reduction.MEAN | Reduction.SUM):
            return oracle.sums.value
        case Softmax():
            return "gemmlowp's fixed-point exponential and reciprocal"
        case _:
            return ""
