"""The integer arithmetic that the runtimes build on, vectorised over NumPy arrays (int64 inside, so nothing overflows)."""

import math

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return (multiplier, shift) with real ~= multiplier / 2**31 * 2**shift and 2**30 <= multiplier < 2**31.

    Source: TensorFlow Lite, kernels/internal/quantization_util.cc, QuantizeMultiplier.

    >>> quantize_multiplier(0.5)
    (1073741824, 0)
    """
    if real == 0.0:
        return 0, 0
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * (1 << 31) + 0.5)
    if multiplier == 1 << 31:
        multiplier //= 2
        shift += 1
    if shift < -31:
        return 0, 0
    return multiplier, shift
