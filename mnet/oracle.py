"""Whose rounding: the steps by which each runtime turns accumulators into int8, as frozen values with their source.

An oracle is somebody else's runtime. Golden model and planner take it as an argument; nobody branches on its name.
Each `..._arithmetic` function returns the integers that a runtime derives from the scales of one operator; golden
model and generated C both start from them.
"""

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

import numpy as np
import numpy.typing as npt

from mnet.fixed_point import (
    Float64Array,
    Int64Array,
    multiply_in_float64,
    multiply_rounding_once,
    multiply_rounding_twice,
    quantize_multiplier,
)
from mnet.graph import (
    Conv2D,
    Dense,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Int8Array,
    Int32Array,
    UnaryFunction,
)


class Rounding(Enum):
    """How an int32 accumulator is multiplied by a scale, given as multiplier / 2**31 * 2**shift and as a float64."""

    DOUBLE = "saturating rounding doubling high multiply, then rounding shift with halves away from zero"
    SINGLE = "one 64-bit product, one rounding shift with halves upwards"
    REAL = "one product with the scale in double precision, rounded with halves away from zero"


class ScaleProduct(Enum):
    """In which precision scales are multiplied and divided."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Curve(Enum):
    """How LOGISTIC and TANH are computed."""

    FLOAT32 = "the function in float32, rounded"
    FIXED = "gemmlowp's exponential and reciprocal in fixed point"


# Forms that generated code may give these steps where the bits are proven to be the same: see codegen.requantize.
SHORTCUTS = frozenset({"fast", "shifts"})


@dataclass(frozen=True)
class Oracle:
    """The rounding steps of one runtime, per operator, and the shortcuts that may stand for them.

    The runtimes agree on the rest: AVERAGE_POOL_2D rounds sum / count to nearest with halves away from zero and
    ignores the scales; SOFTMAX is gemmlowp's fixed-point exponential and reciprocal; PAD writes the zero_point.
    """

    name: str
    convolution: Rounding
    depthwise: Rounding
    fully_connected: Rounding
    fully_connected_scale: ScaleProduct  # of a per-tensor FULLY_CONNECTED; all else is FLOAT64
    fully_connected_per_channel: Rounding
    elementwise: Rounding  # of ADD, MUL, RELU, QUANTIZE, ...: whatever rescales each value
    elementwise_scale: ScaleProduct  # of MUL, PRELU, RELU, LEAKY_RELU, ABS, HARD_SWISH; of the others FLOAT64
    sums: Rounding  # of MEAN and SUM
    sum_is_signed: bool  # SUM reads int8 as int8
    curve: Curve
    relu6_rescales: bool  # RELU6 as an operator of its own; otherwise both its scales count as equal
    functions: frozenset[UnaryFunction]  # that the runtime has for int8
    shortcuts: frozenset[str] = SHORTCUTS


# LiteRT's reference kernels (OpResolverType.BUILTIN_REF), ai-edge-litert 2.3.
# Convolutions: kernels/internal/reference/integer_ops/conv.h and depthwise_conv.h. FULLY_CONNECTED:
# integer_ops/fully_connected.h, "receives the scales in float and performs requant in float to avoid loss of
# precision". ADD, SUB, MUL: reference/add.h, reference/sub.h, reference/integer_ops/mul.h. MEAN: reference/reduce.h,
# QuantizedMeanOrSum. SUM: kernels/reduce.cc, where the reference form of QuantizedMeanOrSum takes every input
# for uint8: on int8 its results make no sense. Functions of one value: activations.cc, elementwise.cc, exp.cc, neg.cc,
# quantize.cc; curves through LUTPopulate (kernels/internal/common.h); register_ref.cc has no ELU.
LITERT = Oracle(
    name="litert",
    convolution=Rounding.DOUBLE,
    depthwise=Rounding.DOUBLE,
    fully_connected=Rounding.REAL,
    fully_connected_scale=ScaleProduct.FLOAT64,
    fully_connected_per_channel=Rounding.REAL,
    elementwise=Rounding.DOUBLE,
    elementwise_scale=ScaleProduct.FLOAT32,
    sums=Rounding.DOUBLE,
    sum_is_signed=False,
    curve=Curve.FLOAT32,
    relu6_rescales=True,
    functions=frozenset(UnaryFunction) - {UnaryFunction.ELU},
)

# tflite-micro's portable kernels. FULLY_CONNECTED: kernels/fully_connected_common.cc and kernel_util.cc,
# GetQuantizedConvolutionMultipler, which multiplies the two scales as float32. LOGISTIC and TANH: logistic_common.cc,
# tanh.cc. RELU6: activations_common.cc, Relu6Prepare, which looks at the input's scale only.
TFLM = Oracle(
    name="tflm",
    convolution=Rounding.DOUBLE,
    depthwise=Rounding.DOUBLE,
    fully_connected=Rounding.DOUBLE,
    fully_connected_scale=ScaleProduct.FLOAT32,
    fully_connected_per_channel=Rounding.DOUBLE,
    elementwise=Rounding.DOUBLE,
    elementwise_scale=ScaleProduct.FLOAT64,  # of the package; sources up to August 2026 divide in float32
    sums=Rounding.DOUBLE,
    sum_is_signed=True,
    curve=Curve.FIXED,
    relu6_rescales=False,
    functions=frozenset(
        {
            UnaryFunction.RELU,
            UnaryFunction.RELU6,
            UnaryFunction.LEAKY_RELU,
            UnaryFunction.HARD_SWISH,
            UnaryFunction.QUANTIZE,
            UnaryFunction.ABS,
            UnaryFunction.LOGISTIC,
            UnaryFunction.TANH,
            UnaryFunction.ELU,
        }
    ),
)

ORACLES = {oracle.name: oracle for oracle in (LITERT, TFLM)}


@dataclass(frozen=True, eq=False)
class Requantization:
    """How accumulators of one op become int8: per channel multiplier and shift (positive = left), and the rounding."""

    multiplier: Int32Array  # [channels_out]
    shift: Int32Array  # [channels_out]
    scale: Float64Array  # [channels_out]; what multiplier and shift approximate; Rounding.REAL multiplies by it
    rounding: Rounding
    zero_point: int
    activation: tuple[int, int]
    shortcuts: frozenset[str] = SHORTCUTS


def scaled(x: npt.ArrayLike, multiplier: npt.ArrayLike, shift: npt.ArrayLike, rounding: Rounding) -> Int64Array:
    """Return x * multiplier / 2**31 * 2**shift, rounded as an oracle does."""
    match rounding:
        case Rounding.DOUBLE:
            return multiply_rounding_twice(x, multiplier, shift)
        case Rounding.SINGLE:
            return multiply_rounding_once(x, multiplier, shift)
        case Rounding.REAL:
            raise ValueError("Rounding.REAL needs the scale itself")
        case _:
            assert_never(rounding)


def quotient(*scales: float, by: float, precision: ScaleProduct) -> float:
    """Return the product of some float32 scales over another, each step rounded to `precision`."""
    exact = np.float32 if precision is ScaleProduct.FLOAT32 else np.float64
    product = exact(scales[0])
    for scale in scales[1:]:
        product *= exact(scale)
    return float(product / exact(by))


def requantization(op: Conv2D | DepthwiseConv2D | FullyConnected, graph: Graph, oracle: Oracle) -> Requantization:
    """Return how `oracle` turns the accumulators of `op` into int8.

    Source of the effective scale: TensorFlow Lite, kernels/kernel_util.cc, PopulateConvolutionQuantizationParams:
    double(input scale) * double(weight scale) / double(output scale), each scale a float32.
    """
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    products = source.scale * op.weight_scales
    match op:
        case Conv2D(dense=None):
            rounding = oracle.convolution
        case DepthwiseConv2D():
            rounding = oracle.depthwise
        case Conv2D() | FullyConnected() if op.dense is Dense.PER_CHANNEL:
            rounding = oracle.fully_connected_per_channel
        case Conv2D() | FullyConnected():
            rounding = oracle.fully_connected
            if oracle.fully_connected_scale is ScaleProduct.FLOAT32:
                products = products.astype(np.float32).astype(np.float64)
        case _:
            assert_never(op)
    scales = products / target.scale
    pairs = [quantize_multiplier(float(scale)) for scale in scales]
    return Requantization(
        multiplier=np.array([multiplier for multiplier, _ in pairs], np.int32),
        shift=np.array([shift for _, shift in pairs], np.int32),
        scale=scales,
        rounding=rounding,
        zero_point=target.zero_point,
        activation=op.activation,
        shortcuts=oracle.shortcuts,
    )


def requantize(accumulators: npt.NDArray[np.integer], how: Requantization) -> Int8Array:
    """Return the int8 values that the runtime makes of int32 `accumulators` [..., channels_out]."""
    if how.rounding is Rounding.REAL:
        values = multiply_in_float64(accumulators, how.scale)
    else:
        values = scaled(accumulators, how.multiplier, how.shift, how.rounding)
    return np.clip(values + how.zero_point, *how.activation).astype(np.int8)


def accumulator_bound(op: Conv2D | DepthwiseConv2D | FullyConnected, graph: Graph) -> Int64Array:
    """Return per output channel the largest |accumulator| that any int8 input can lead to, partial sums included."""
    zero_point = graph.tensors[op.input].zero_point
    widest = max(127 - zero_point, zero_point + 128)
    axes = (0, 1) if isinstance(op, DepthwiseConv2D) else tuple(range(1, op.weights.ndim))
    bound: Int64Array = np.abs(op.weights.astype(np.int64)).sum(axis=axes) * widest + np.abs(op.bias.astype(np.int64))
    return bound
