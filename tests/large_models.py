"""Networks of the sizes that people deploy, with random weights: for plans, not for accuracy."""

from mnet.graph import Graph
from tests.models import Builder

_V1 = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
_V2 = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _divisible(channels: float) -> int:
    """Return a multiple of 8 near `channels`, at most a tenth less (as the MobileNetV2 of keras.applications)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def mobilenet_v1(alpha: float, size: int, classes: int) -> Graph:
    """Return the MobileNet V1 of keras.applications for images of [size, size, 3]."""
    build = Builder(1, (size, size, 3), scale=1 / 128)
    x = build.conv("input", int(32 * alpha), (3, 3), (2, 2))
    for channels, stride in _V1:
        x = build.depthwise(x, stride=(stride, stride))
        x = build.conv(x, int(channels * alpha))
    x = build.fully_connected(build.mean(x), classes)
    return build.graph(build.softmax(x), "mobilenet_v1")


def mobilenet_v2(alpha: float, size: int, classes: int) -> Graph:
    """Return the MobileNetV2 of keras.applications: inverted residuals, linear bottlenecks."""
    build = Builder(2, (size, size, 3), scale=1 / 128, weight_scale=0.003)
    x = build.conv("input", _divisible(32 * alpha), (3, 3), (2, 2))
    for expansion, channels, repeats, first_stride in _V2:
        for number in range(repeats):
            stride = first_stride if number == 0 else 1
            source, width = x, build.shape(x)[2]
            x = build.conv(x, expansion * width) if expansion > 1 else x
            x = build.depthwise(x, stride=(stride, stride))
            x = build.conv(x, _divisible(channels * alpha), activation="none", zero_point=3)
            if stride == 1 and build.shape(x) == build.shape(source):
                x = build.add(source, x, zero_point=-2)
    x = build.conv(x, 1280)
    x = build.fully_connected(build.mean(x), classes)
    return build.graph(build.softmax(x), "mobilenet_v2")
