"""Hypothesis strategies: small random Graphs for the importer, the golden model, the planner and every kernel."""

import math
from collections.abc import Collection, Sequence

import numpy as np
from hypothesis import strategies as st

from mnet.graph import BinaryFunction, Constant, Graph, Int8Array, Reduction, Sampling, UnaryFunction
from mnet.oracle import LITERT, TFLM
from tests.models import Builder

MOVES = ("pad", "pad_any", "concat", "gather", "gather_any", "transpose", "blocks", "reshape")
# LiteRT's reference kernel of SUM is broken, and indices are no int8: "sum" and "arg_max" are for who asks for them.
KINDS = (
    "conv",
    "pointwise",
    "depthwise",
    "average_pool",
    "max_pool",
    "mean",
    "nearest",
    "bilinear",
    "reduce",
    "residual",
    "unary",
    "binary",
    "dense",
    "dense of pixels",
    "l2_normalization",
    "softmax",
    *MOVES,
)
_AXES = st.sampled_from(((0,), (1,), (2,), (0, 1), (0, 1), (0, 2), (1, 2), (0, 1, 2)))

_ENDS = ("softmax", "arg_max")  # kinds that nothing follows

_SIZES = st.sampled_from((1, 2, 3, 4, 5, 6, 7, 8, 9, 11))
_CHANNELS = st.sampled_from((1, 2, 3, 4, 5, 7, 8, 12, 16))
_ZERO_POINTS = st.sampled_from((-128, -128, 0, 127, -127, 126, 3, -40))
_ACTIVATIONS = st.sampled_from(("relu", "relu", "relu6", "none", "relu_n1_to_1"))
_UNARY = sorted(LITERT.functions & TFLM.functions, key=lambda function: function.value)
_FILLS = st.sampled_from((1.0, 0.3, 1.5, 4.0))


@st.composite
def small_graphs(draw: st.DrawFn, kinds: Collection[str] = KINDS, most_ops: int = 5) -> Graph:
    """Draw a chain of one to `most_ops` links (a residual block is one link) of the given `kinds`.

    Sizes are odd and even, down to 1 pixel and 1 channel; strides 1 to 3, also wider than the kernel; SAME and VALID;
    dilations; depth multipliers; zero_points at both ends; outputs that saturate; dead channels.
    """
    build = _begun(draw)
    x, flat = "input", False
    for _ in range(draw(st.integers(1, most_ops))):
        kind = _kind(draw, build, x, kinds, flat)
        if not kind:
            break
        x = _link(draw, build, x, kind)
        flat = flat or kind == "dense"
        if kind in _ENDS:
            break
    if x == "input":
        x = build.reshape(x, build.shape(x))
    return build.graph(x, "drawn")


@st.composite
def graphs_with_many_ends(draw: st.DrawFn, kinds: Collection[str] = KINDS, most_ops: int = 6) -> Graph:
    """Draw networks of one to four inputs and outputs.

    A further input joins by ADD, through a layer of its own or not. Outputs are made early, in the middle of the chain
    or at its end, and are read by others or not; branches of a layer end in an output. Outputs come in any order.
    """
    build = _begun(draw)
    x, flat, outputs = "input", False, list[str]()
    for _ in range(draw(st.integers(1, most_ops))):
        what = draw(st.sampled_from(("link", "link", "join", "branch")))
        if what == "join" and not flat and len(build.inputs) < 4:
            x = _joined(draw, build, x)
        else:
            kind = _kind(draw, build, x, kinds, flat)
            if not kind:
                break
            y = _link(draw, build, x, kind)
            if what == "branch":
                outputs.append(y)
                continue
            x, flat = y, flat or kind == "dense"
            if kind in _ENDS:
                break
        if draw(st.booleans()):
            outputs.append(x)
    if x not in outputs:
        outputs.append(x if x != "input" else build.reshape(x, build.shape(x)))
    outputs = outputs[-4:]
    return build.graph(draw(st.permutations(outputs)), "drawn")


def _begun(draw: st.DrawFn) -> Builder:
    shape = (draw(_SIZES), draw(_SIZES), draw(_CHANNELS))
    scale = draw(st.sampled_from((1 / 128, 1 / 255, 0.1, 3.7)))
    return Builder(draw(st.integers(0, 2**32 - 1)), shape, scale=scale, zero_point=draw(_ZERO_POINTS))


def _kind(draw: st.DrawFn, build: Builder, x: str, kinds: Collection[str], flat: bool) -> str:
    """Draw what may follow tensor `x`; "" where nothing may. `flat`: a dense layer came before."""
    possible = [kind for kind in kinds if not flat or kind in ("dense", "softmax", "arg_max")]
    if build.shape(x)[2] >= 512:  # LiteRT stops the program where 512 classes are equal
        possible = [kind for kind in possible if kind != "softmax"]
    return draw(st.sampled_from(possible)) if possible else ""


def _joined(draw: st.DrawFn, build: Builder, x: str) -> str:
    """Add another input, of the size of `x`, to `x`."""
    height, width, channels = build.shape(x)
    own_layer = draw(st.booleans())
    shape = (height, width, draw(_CHANNELS) if own_layer else channels)
    y = build.input(shape, scale=draw(st.sampled_from((1 / 128, 0.1))), zero_point=draw(_ZERO_POINTS))
    if own_layer:
        y = _same_size(draw, build, y, channels)
    first, second = (x, y) if draw(st.booleans()) else (y, x)
    return build.add(first, second, activation=draw(_ACTIVATIONS), zero_point=draw(_ZERO_POINTS), fill=draw(_FILLS))


def _link(draw: st.DrawFn, build: Builder, x: str, kind: str) -> str:
    height, width, channels = build.shape(x)
    match kind:
        case "conv" | "depthwise":
            return _window(draw, build, x, kind)
        case "pointwise":
            stride = draw(st.sampled_from((1, 1, 1, 2)))
            return build.conv(
                x,
                draw(_CHANNELS),
                (1, 1),
                (stride, stride),
                activation=draw(_ACTIVATIONS),
                zero_point=draw(_ZERO_POINTS),
                fill=draw(_FILLS),
                dead=draw(st.sampled_from((0.0, 0.0, 0.5))),
            )
        case "average_pool" | "max_pool":
            same = draw(st.booleans())
            most = (5, 5) if same else (min(height, 5), min(width, 5))
            kernel = (draw(st.integers(1, most[0])), draw(st.integers(1, most[1])))
            if draw(st.integers(0, 3)) == 0:
                kernel = (height, width)
            stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
            activation = draw(st.sampled_from(("none", "none", "relu")))
            pool = build.max_pool if kind == "max_pool" else build.average_pool
            return pool(x, kernel, stride, same=same, activation=activation)
        case "nearest" | "bilinear":
            sampling = Sampling.NEAREST if kind == "nearest" else Sampling.BILINEAR
            factor = draw(st.sampled_from((1, 2, 2, 3)))
            size = (min(height * factor, 24), min(width * factor, 24))
            if draw(st.booleans()):
                size = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
            aligned, half = draw(st.sampled_from(((False, False), (False, True), (False, True), (True, False))))
            return build.resize(x, size, sampling, align_corners=aligned, half_pixel_centers=half)
        case "mean":
            return build.mean(x, zero_point=draw(_ZERO_POINTS), ratio=draw(st.sampled_from((1.0, 0.3, 0.77, 2.5))))
        case "reduce":
            function = draw(st.sampled_from((Reduction.MEAN, Reduction.MAX, Reduction.MIN)))
            ratio = draw(st.sampled_from((1.0, 0.3, 0.77, 2.5)))
            return build.reduce(x, function, draw(_AXES), zero_point=draw(_ZERO_POINTS), ratio=ratio)
        case "sum":
            axes = draw(_AXES)
            count = math.prod(build.shape(x)[axis] for axis in axes)
            ratio = count ** draw(st.sampled_from((0.5, 1.0, 0.0))) * draw(st.sampled_from((1.0, 0.3, 0.01, 2.5)))
            return build.reduce(x, Reduction.SUM, axes, zero_point=draw(_ZERO_POINTS), ratio=ratio)
        case "pad":
            top, bottom, left, right = (draw(st.integers(0, 2)) for _ in range(4))
            return build.pad(x, (top, bottom, left, right))
        case "pad_any":
            top, bottom, left, right, before, after = (draw(st.integers(0, 3)) for _ in range(6))
            return build.pad(x, (top, bottom, left, right), (before, after), draw(st.sampled_from((None, -128, 9))))
        case "concat":
            return _concat(draw, build, x)
        case "gather":
            return build.gather(x, *(_slice(draw, size) for size in (height, width, channels)))
        case "gather_any":
            axis = draw(st.integers(0, 2))
            taken = [list(range(size)) for size in (height, width, channels)]
            taken[axis] = draw(st.lists(st.sampled_from(taken[axis]), min_size=1, max_size=9))
            return build.gather(x, *taken)
        case "transpose":
            return build.transpose(x, draw(st.permutations(range(3)).map(tuple)))
        case "blocks":
            return _blocks(draw, build, x)
        case "residual":
            y = x
            for _ in range(draw(st.integers(1, 2))):
                y = _same_size(draw, build, y, channels)
            if draw(st.integers(0, 3)) == 0:
                x = _same_size(draw, build, x, channels)
            first, second = (x, y) if draw(st.booleans()) else (y, x)
            return build.add(
                first,
                second,
                activation=draw(_ACTIVATIONS),
                zero_point=draw(_ZERO_POINTS),
                fill=draw(_FILLS),
            )
        case "binary":
            return _binary(draw, build, x)
        case "unary":
            try:
                return build.unary(
                    x,
                    draw(st.sampled_from(_UNARY)),
                    alpha=draw(st.sampled_from((0.1, 0.3, 0.0, 1.5, -0.5))),
                    zero_point=draw(_ZERO_POINTS),
                    ratio=draw(st.sampled_from((1.0, 1.0, 0.5, 0.77, 2.5))),
                )
            except ValueError:  # the runtimes' arithmetic does not take these scales
                return build.unary(x, UnaryFunction.RELU)
        case "reshape":
            total = height * width * channels
            whole = (1, 1, total), (height * width, 1, channels), (1, height * width, channels)
            return build.reshape(
                x, draw(st.sampled_from((*whole, (width, height, channels), (channels, 1, total // channels))))
            )
        case "dense":
            return build.fully_connected(
                x,
                draw(_CHANNELS),
                per_channel=draw(st.booleans()),
                activation=draw(_ACTIVATIONS),
                zero_point=draw(_ZERO_POINTS),
                fill=draw(_FILLS),
            )
        case "dense of pixels":
            if height * width == 1:
                return build.reshape(x, (1, 1, channels))
            return build.dense_of_pixels(
                x,
                draw(_CHANNELS),
                per_channel=draw(st.booleans()),
                activation=draw(_ACTIVATIONS),
                zero_point=draw(_ZERO_POINTS),
                fill=draw(_FILLS),
                dead=draw(st.sampled_from((0.0, 0.0, 0.5))),
            )
        case "l2_normalization":
            return build.l2_normalization(x)
        case "arg_max":
            return build.arg_max(x)
        case "softmax":
            beta = draw(st.sampled_from((1.0, 1.0, 0.5, 7.0)))
            # The runtimes refuse a smaller product of beta and scale, and so does the importer.
            return build.softmax(x, beta=max(beta, 2.0 ** math.ceil(-25 - math.log2(build.tensors[x].scale))))
    raise ValueError(f"no kind {kind!r}; there are {KINDS}")


def _binary(draw: st.DrawFn, build: Builder, x: str) -> str:
    """Add a function of two values: of two branches, of a branch and what it is reduced to, or of a constant."""
    function = draw(st.sampled_from(tuple(BinaryFunction)))
    activation, zero_point, fill = draw(_ACTIVATIONS), draw(_ZERO_POINTS), draw(_FILLS)
    if function not in (BinaryFunction.ADD, BinaryFunction.SUB, BinaryFunction.MUL):
        activation = "none"
    shape = build.shape(x)
    other: str | Constant
    match draw(st.sampled_from(("branch", "reduced", "constant", "constant", "itself"))):
        case "branch":
            other = _same_size(draw, build, x, shape[2])
        case "reduced":
            reduction = draw(st.sampled_from((Reduction.MEAN, Reduction.MAX)))
            other = build.reduce(x, reduction, draw(_AXES), zero_point=draw(_ZERO_POINTS))
        case "constant":
            sizes = [size if draw(st.booleans()) else 1 for size in shape]
            scale = draw(st.sampled_from((0.02, 1 / 256, 0.5)))
            other = build.constant((sizes[0], sizes[1], sizes[2]), scale=scale, zero_point=draw(_ZERO_POINTS))
        case _:
            other = x
    first, second = (other, x) if draw(st.booleans()) and function is not BinaryFunction.PRELU else (x, other)
    return build.binary(function, first, second, activation=activation, zero_point=zero_point, fill=fill)


def _slice(draw: st.DrawFn, size: int) -> Sequence[int]:
    """Draw numbers from a size: all, a part, every so many, backwards."""
    step = draw(st.sampled_from((1, 1, 1, 2, 3, -1, -2)))
    begin = draw(st.integers(0, size - 1)) if draw(st.booleans()) else (0 if step > 0 else size - 1)
    end = size if step > 0 else -1
    taken = range(begin, end, step)
    return taken[: draw(st.integers(1, len(taken)))] if draw(st.booleans()) else taken


def _concat(draw: st.DrawFn, build: Builder, x: str) -> str:
    """Join parts of `x`, or all of it, to it."""
    axis = draw(st.integers(0, 2))
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        taken: list[Sequence[int]] = [range(size) for size in build.shape(x)]
        taken[axis] = _slice(draw, build.shape(x)[axis])
        parts.append(build.gather(x, *taken) if draw(st.booleans()) else x)
    return build.concat((*parts, x), axis)


def _blocks(draw: st.DrawFn, build: Builder, x: str) -> str:
    """Add a DEPTH_TO_SPACE or SPACE_TO_DEPTH; pad first where blocks do not fit."""
    size = draw(st.integers(2, 3))
    height, width, channels = build.shape(x)
    if draw(st.booleans()):
        x = build.pad(x, (0, -height % size, 0, -width % size)) if height % size or width % size else x
        return build.space_to_depth(x, size)
    x = build.pad(x, (0, 0, 0, 0), (0, -channels % (size * size))) if channels % (size * size) else x
    return build.depth_to_space(x, size)


def _window(draw: st.DrawFn, build: Builder, x: str, kind: str) -> str:
    height, width, _ = build.shape(x)
    kernel = draw(st.sampled_from(((3, 3), (3, 3), (1, 1), (2, 2), (1, 3), (5, 3), (4, 1))))
    stride = draw(st.sampled_from(((1, 1), (1, 1), (2, 2), (2, 2), (1, 2), (3, 3))))
    dilation = draw(st.sampled_from(((1, 1), (1, 1), (1, 1), (2, 2), (1, 3))))
    reach = ((kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1])
    same = draw(st.booleans()) or reach[0] >= height or reach[1] >= width
    activation, zero_point, fill = draw(_ACTIVATIONS), draw(_ZERO_POINTS), draw(_FILLS)
    dead = draw(st.sampled_from((0.0, 0.0, 0.5)))
    if kind == "conv":
        return build.conv(
            x,
            draw(_CHANNELS),
            kernel,
            stride,
            dilation,
            same=same,
            activation=activation,
            zero_point=zero_point,
            fill=fill,
            dead=dead,
        )
    return build.depthwise(
        x,
        kernel,
        stride,
        dilation,
        multiplier=draw(st.sampled_from((1, 1, 1, 2, 3))),
        same=same,
        activation=activation,
        zero_point=zero_point,
        fill=fill,
        dead=dead,
    )


def _same_size(draw: st.DrawFn, build: Builder, x: str, channels: int) -> str:
    """Add an op that keeps height and width, as a branch of a residual block needs."""
    activation, zero_point = draw(_ACTIVATIONS), draw(_ZERO_POINTS)
    if draw(st.booleans()) and build.shape(x)[2] == channels:
        return build.depthwise(x, (3, 3), activation=activation, zero_point=zero_point)
    kernel = draw(st.sampled_from(((1, 1), (3, 3))))
    return build.conv(x, channels, kernel, activation=activation, zero_point=zero_point)


def random_input(graph: Graph, seed: int, count: int = 1) -> dict[str, Int8Array]:
    """Return int8 [count, height, width, channels] for each input: noise, smooth pictures, saturated ones in turn."""
    return {
        name: _random_images(graph.tensors[name].shape, seed + which, count) for which, name in enumerate(graph.inputs)
    }


def _random_images(shape: tuple[int, int, int], seed: int, count: int) -> Int8Array:
    random = np.random.default_rng(seed)
    height, width, channels = shape
    made = np.empty((count, *shape), np.int8)
    row, column, channel = np.mgrid[0:height, 0:width, 0:channels]
    for number in range(count):
        match (number + seed) % 4:
            case 0 | 1:
                made[number] = random.integers(-128, 128, shape)
            case 2:
                slope = random.uniform(-0.4, 0.4, 3)
                wave = np.sin(row * slope[0] + column * slope[1] + channel * slope[2] + random.uniform(0, 6))
                made[number] = np.clip(wave * random.uniform(20, 160) + random.uniform(-60, 60), -128, 127)
            case _:
                made[number] = random.choice(np.array([-128, 127], np.int8), shape if number % 2 else 1)
    return made
