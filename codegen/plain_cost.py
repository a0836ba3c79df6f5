"""What kernels in plain C take, by core: the terms are those of their loops, the factors were fitted to counted runs.

gcc 12 at -O2 made the runs (`mnet profile`, layer by layer, of random networks that had to do without assembly). On the
average they agree within 3 to 4 %; convolutions on ARMv6-M, whose registers are short, within 8 %. Other compilers
take other figures.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from codegen.call import Cost
from codegen.plain import Access, ConvolutionView, DepthwiseView
from codegen.requantize import RequantizationView
from codegen.targets import Timing


@dataclass(frozen=True)
class Factors:
    """Cycles of one core."""

    byte: Mapping[str, float]  # from an accumulator to a stored value, by the form of the requantisation
    # Of a convolution: of two channels, of an output, of a run of taps for two channels of one or two pixels, ...
    two_channels: float
    convolved: float
    run: float
    taps: tuple[float, float]  # ... of a tap for those
    depthwise: tuple[float, float]  # of a depthwise convolution: of a channel, and each of its taps,
    output: tuple[float, float]  # of an output, and each of its taps
    softmax: tuple[float, float]  # of a pixel, of a channel
    row_sum: tuple[float, float]  # of a channel and up to eight pixels, of a value


_M0 = Factors(
    byte={"fast": 35, "shifts": 58, "double": 180, "single": 180, "real": 700},
    two_channels=0,
    convolved=28,
    run=0,
    taps=(16.9, 27.8),
    depthwise=(66, 6),
    output=(0, 7.7),
    softmax=(800, 167),
    row_sum=(7, 4),
)
_M3 = Factors(
    byte={"fast": 8, "shifts": 15, "double": 24, "single": 24, "real": 350},
    two_channels=2.4,
    convolved=0,
    run=24.6,
    taps=(13.1, 19.3),
    depthwise=(30, 3),
    output=(2, 5.6),
    softmax=(253, 81),
    row_sum=(6, 2.4),
)
_M4 = Factors(
    byte={"fast": 12, "shifts": 19, "double": 27, "single": 27, "real": 350},
    two_channels=9.5,
    convolved=4,
    run=7.3,
    taps=(11.3, 15.5),
    depthwise=(39, 0),
    output=(0, 5.1),
    softmax=(200, 81.5),
    row_sum=(7, 2.25),
)
FACTORS: Mapping[str, Factors] = {"cortex-m0": _M0, "cortex-m0plus": _M0, "cortex-m3": _M3, "cortex-m4": _M4}
# A taken branch of an M0+ is shorter.
_SHARE: Mapping[str, float] = {"cortex-m0plus": 0.96}


def _cost(timing: Timing, cycles: float, code_bytes: float) -> Cost:
    return Cost(round(cycles * _SHARE.get(timing.model, 1)), round(code_bytes * (1.4 if "m0" in timing.model else 1)))


def in_c(r: RequantizationView, timing: Timing, outputs: int, products: int) -> Cost:
    """Return what the C bodies of kernels take that have assembly for other requantisations, roughly."""
    how = FACTORS[timing.model]
    return _cost(timing, outputs * how.byte[r.form] + products * how.taps[0] / 2, 400)


def convolution_in_c_cost(view: ConvolutionView, timing: Timing) -> Cost:
    """Return what one call of `convolution` takes."""
    how, rows = FACTORS[timing.model], view.kernel[0]
    blocks, pairs = -(-view.outputs // view.pixels), -(-view.target.channels // view.block)
    some = how.run * rows * view.runs + how.taps[view.pixels - 1] * rows * view.runs * view.run
    bytes_out = (how.byte[view.requantization.form] + how.convolved) * view.pixels * view.block
    code = 130 + 60 * (view.pixels - 1) + 20 * (rows > 1) + 20 * (view.runs > 1)
    code += 40 * view.pixels * view.block * (view.requantization.form != "fast")
    return _cost(timing, pairs * (how.two_channels + blocks * (some + bytes_out)), code)


def depthwise_in_c_cost(view: DepthwiseView, timing: Timing) -> Cost:
    """Return what one call of `depthwise` takes."""
    how, taps = FACTORS[timing.model], view.kernel[0] * view.kernel[1]
    output = how.output[0] + how.output[1] * taps + how.byte[view.requantization.form]
    channel = how.depthwise[0] + how.depthwise[1] * taps + view.outputs * output
    return _cost(timing, view.target.channels * channel, 110 + 14 * taps)


def softmax_cost(source: Access, timing: Timing) -> Cost:
    """Return what one call of `softmax` takes."""
    pixel, channel = FACTORS[timing.model].softmax
    return _cost(timing, source.width * (pixel + source.channels * channel), 540)


def row_sum_in_c_cost(source: Access, timing: Timing) -> Cost:
    """Return what the C body of `row_sum` takes: eight pixels at a time, then the others."""
    eights, rest = divmod(source.width, 8)
    passes = eights + (rest > 0)
    each, value = FACTORS[timing.model].row_sum
    code = 24 + 7 * (8 * (eights > 0) + rest) + 16 * (passes > 1)
    return _cost(timing, 17 + source.channels * (each * passes + value * source.width), code)
