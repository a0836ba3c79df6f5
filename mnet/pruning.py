"""Fewer channels for a trained network: which matter least, and its weights without them.

Layers are joined in groups: what the stem or a pointwise convolution makes, the depthwise after it, and what the next
pointwise reads have the same channels. Of a group, the normalization that counts is the last one before channels are
mixed: that of the depthwise, or of the last pointwise, which the classifier reads. A scale before it means little,
because it is normalized away. `mnet train --sparsity` draws those scales to 0.

A channel is removed as if its scale were 0: it then holds its shift, and that goes into what reads it. So a channel
of scale 0 is removed exactly, as `codegen/dead_channels.py` does in the integer model.
Source of the idea: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", 2017.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mnet.architecture import Architecture, Block, Shape
from mnet.errors import MnetError

Weights = Mapping[str, npt.NDArray[Any]]  # float32, by Keras path
_GRAIN = 4  # kernels make four channels at a time: other widths cost as much as the next multiple


@dataclass(frozen=True)
class _Group:
    """Layers that have the same channels, by name; "" where there is none."""

    maker: str  # stem or pointwise convolution
    depthwise: str
    reader: str  # pointwise convolution or classifier

    @property
    def scale(self) -> str:
        """Return the layer whose normalization counts."""
        return self.depthwise or self.maker


def _groups(a: Architecture) -> tuple[_Group, ...]:
    makers = ["conv1", *(f"conv_pw_{number}" for number in range(1, len(a.blocks) + 1))]
    joined = [_Group(maker, f"conv_dw_{n}", f"conv_pw_{n}") for n, maker in enumerate(makers[:-1], 1)]
    return (*joined, _Group(makers[-1], "", "conv_preds"))


def is_sparse(path: str, a: Architecture) -> bool:
    """Return whether a variable is drawn to 0 for sparsity: the scales of normalizations that count.

    >>> from mnet.architecture import mobilenet
    >>> net = mobilenet(0.25)
    >>> [is_sparse(f"{name}_bn/gamma", net) for name in ("conv_dw_1", "conv_pw_1", "conv_pw_13")]
    [True, False, True]
    """
    return path in {f"{group.scale}_bn/gamma" for group in _groups(a)}


def shape_of_network(a: Architecture) -> Shape:
    """Return strides and widths of a network."""
    return Shape(Block(a.stem_stride, a.stem_width), a.blocks, a.linear_depthwise)


def importance(weights: Weights, a: Architecture) -> tuple[npt.NDArray[np.float64], ...]:
    """Return for each group [channels]: about which share of the next sums' variance a channel makes.

    A channel is scale times something of variance 1, and reader j weighs it by w: so it adds (scale * w_j)**2 to the
    variance of sum j, if channels do not depend on each other; the mean over j of its share in each sum.
    """
    found = []
    for group in _groups(a):
        scale = weights[f"{group.scale}_bn/gamma"].astype(np.float64)
        parts = (scale[:, None] * weights[f"{group.reader}/kernel"][0, 0].astype(np.float64)) ** 2
        found.append((parts / np.maximum(parts.sum(axis=0), 1e-30)).mean(axis=1))
    return tuple(found)


def nested_shapes(weights: Weights, a: Architecture) -> tuple[Shape, ...]:
    """Return shapes from the narrowest to the network's own: what is left at each limit of importance.

    The limit is the same for all layers, relative to their mean; widths are rounded to multiples of 4.
    """
    relative = [one * len(one) for one in importance(weights, a)]
    own = shape_of_network(a)
    found: dict[str, Shape] = {}
    for limit in sorted({0.0, *np.concatenate(relative)}, reverse=True):
        widths = [_rounded(int((one >= limit).sum()), len(one)) for one in relative]
        shape = _with_widths(own, widths)
        found.setdefault(str(shape), shape)
    return tuple(found.values())


def _rounded(count: int, most: int) -> int:
    return min(max((count + _GRAIN // 2) // _GRAIN * _GRAIN, _GRAIN), most)


def _with_widths(shape: Shape, widths: Sequence[int]) -> Shape:
    old = (shape.stem, *shape.blocks)
    stem, *blocks = (Block(block.stride, width) for block, width in zip(old, widths, strict=True))
    return Shape(stem, tuple(blocks), shape.linear_depthwise)


def narrower(a: Architecture, shape: Shape, name: str) -> Architecture:
    """Return the architecture with the widths of `shape`.

    Raises:
        MnetError: it is none of the same layers with at most as many channels.
    """
    old, new = shape_of_network(a), replace(shape, linear_depthwise=a.linear_depthwise)
    pairs = list(zip((old.stem, *old.blocks), (new.stem, *new.blocks), strict=False))
    same = len(old.blocks) == len(new.blocks) and all(one.stride == other.stride for one, other in pairs)
    if not same or not all(1 <= other.width <= one.width for one, other in pairs):
        raise MnetError(
            f"--blocks {shape} is no narrower form of --from {name}: that has {old}; the same layers and strides, with "
            "at most as many channels, keep its most important ones."
        )
    return replace(a, stem_width=new.stem.width, blocks=new.blocks)


def narrowed(weights: Weights, old: Architecture, new: Architecture) -> dict[str, npt.NDArray[Any]]:
    """Return the weights of the network `new`: of each group of `old` its most important channels, in their order.

    What the others hold without their scale is added to what reads them: taken off the mean of its normalization, or
    added to the bias of the classifier.
    """
    made = dict(weights)
    widths = (new.stem_width, *(block.width for block in new.blocks))
    for group, shares, width in zip(_groups(old), importance(weights, old), widths, strict=True):
        kept = np.sort(np.argsort(-shares, kind="stable")[:width])
        constant = np.array(made[f"{group.scale}_bn/beta"])
        constant[kept] = 0
        if not (group.depthwise and old.linear_depthwise):
            constant = np.clip(constant, 0, 6)
        held = constant @ made[f"{group.reader}/kernel"][0, 0]
        if f"{group.reader}/bias" in made:
            made[f"{group.reader}/bias"] = made[f"{group.reader}/bias"] + held
        else:
            made[f"{group.reader}_bn/moving_mean"] = made[f"{group.reader}_bn/moving_mean"] - held
        made[f"{group.maker}/kernel"] = made[f"{group.maker}/kernel"][..., kept]
        made[f"{group.reader}/kernel"] = made[f"{group.reader}/kernel"][:, :, kept]
        if group.depthwise:
            made[f"{group.depthwise}/kernel"] = made[f"{group.depthwise}/kernel"][:, :, kept]
        for layer in filter(None, (group.maker, group.depthwise)):
            for part in ("gamma", "beta", "moving_mean", "moving_variance"):
                made[f"{layer}_bn/{part}"] = made[f"{layer}_bn/{part}"][kept]
    return made
