"""Whose rounding: the steps by which each runtime turns accumulators into int8, as frozen values with their source.

An oracle is somebody else's runtime. Golden model and planner take it as an argument; nobody branches on its name.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from mnet.fixed_point import quantize_multiplier
from mnet.graph import Conv2D, DepthwiseConv2D, FullyConnected, Graph, Int32Array


class Rounding(Enum):
    """How an int32 accumulator is multiplied by multiplier / 2**31 * 2**shift."""

    DOUBLE = "saturating rounding doubling high multiply, then rounding shift with halves away from zero"
    SINGLE = "one 64-bit product, one rounding shift with halves upwards"


@dataclass(frozen=True)
class Oracle:
    """The rounding steps of one runtime, per operator."""

    name: str
    convolution: Rounding
    depthwise: Rounding
    fully_connected: Rounding
    fully_connected_per_channel: Rounding
    add: Rounding
    mean: Rounding


@dataclass(frozen=True, eq=False)
class Requantization:
    """How accumulators of one op become int8: per channel multiplier and shift (positive = left), and the rounding."""

    multiplier: Int32Array  # [channels_out]
    shift: Int32Array  # [channels_out]
    rounding: Rounding
    zero_point: int
    activation: tuple[int, int]


# LiteRT's reference kernels (OpResolverType.BUILTIN_REF).
LITERT = Oracle(
    name="litert",
    convolution=Rounding.DOUBLE,
    depthwise=Rounding.DOUBLE,
    fully_connected=Rounding.SINGLE,
    fully_connected_per_channel=Rounding.SINGLE,
    add=Rounding.DOUBLE,
    mean=Rounding.DOUBLE,
)

ORACLES = {oracle.name: oracle for oracle in (LITERT,)}


def requantization(op: Conv2D | DepthwiseConv2D | FullyConnected, graph: Graph, oracle: Oracle) -> Requantization:
    """Return how `oracle` turns the accumulators of `op` into int8.

    Source of the effective scale: TensorFlow Lite, kernels/kernel_util.cc, PopulateConvolutionQuantizationParams:
    double(input scale) * double(weight scale) / double(output scale), each scale a float32.
    """
    source, target = graph.tensors[op.input], graph.tensors[op.output]
    pairs = [quantize_multiplier(source.scale * float(scale) / target.scale) for scale in op.weight_scales]
    match op:
        case Conv2D():
            rounding = oracle.convolution
        case DepthwiseConv2D():
            rounding = oracle.depthwise
        case FullyConnected():
            rounding = oracle.fully_connected_per_channel if op.per_channel else oracle.fully_connected
    return Requantization(
        multiplier=np.array([multiplier for multiplier, _ in pairs], np.int32),
        shift=np.array([shift for _, shift in pairs], np.int32),
        rounding=rounding,
        zero_point=target.zero_point,
        activation=op.activation,
    )
