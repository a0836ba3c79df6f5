"""The vector kernels, assembly body on an emulated Cortex-M55, against the golden model: every row of every tensor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import codegen.requantize
from codegen.convolution_mve import Block, blocks_of
from codegen.depthwise_mve import groups_of
from codegen.emit import Origin, emit, write_folder
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden, verify
from mnet.emulator import find_qemu, run_qemu
from mnet.errors import MissingToolError
from mnet.graph import Graph
from mnet.oracle import LITERT
from mnet.toolchain import build_target, find_compiler
from tests.models import Builder
from tests.strategies import random_input

M55 = target("cortex-m55")


def pointwise() -> Graph:
    """Chunks with and without a tail, one to five pixels beside whole fours, many chunks in a loop."""
    build = Builder(1, (2, 9, 20), zero_point=-3)
    x = build.conv("input", 24, activation="relu")
    x = build.conv(x, 7, zero_point=5)
    x = build.conv(x, 150, stride=(1, 2), fill=1.5)
    x = build.conv(x, 6, stride=(2, 2))
    x = build.conv(x, 16, stride=(1, 2), zero_point=-128, activation="relu6")
    return build.graph(x, "pointwise")


def windows() -> Graph:
    """Kernels of several rows: pointers that stay in registers, and others; strides; padding."""
    build = Builder(2, (11, 13, 3), zero_point=-128)
    x = build.conv("input", 12, (3, 3), (2, 2), activation="relu")
    x = build.conv(x, 16, (3, 3))
    x = build.conv(x, 5, (4, 4), zero_point=17)
    x = build.conv(x, 48, (2, 1), (1, 2), same=False)
    x = build.conv(x, 8, (3, 3))
    return build.graph(x, "windows")


def long_windows() -> Graph:
    """Rows of six pixels whose pointers stay in registers for the last two only."""
    build = Builder(7, (5, 6, 32), zero_point=-128)
    return build.graph(build.conv("input", 13, (3, 3), activation="relu", zero_point=-128), "long_windows")


def speech() -> Graph:
    """A tall kernel over one channel, as keyword spotting has it, and a fully connected layer over pixels."""
    build = Builder(3, (13, 10, 1), zero_point=83)
    x = build.conv("input", 8, (10, 4), (2, 2), activation="relu")
    x = build.fully_connected(x, 9)
    x = build.fully_connected(x, 150, activation="relu")
    return build.graph(build.fully_connected(x, 3), "speech")


def depthwise() -> Graph:
    """One to three eights of channels, the last of them shared; odd rows; strides; dilation; tall kernels."""
    build = Builder(4, (9, 9, 4), zero_point=-5)
    x = build.depthwise("input", activation="relu")
    x = build.conv(x, 20)
    x = build.depthwise(x, (3, 3), (2, 2), zero_point=3)
    x = build.depthwise(x, (5, 3), activation="relu6", zero_point=-128)
    x = build.depthwise(x, (2, 2), dilation=(2, 3))
    x = build.conv(x, 8)
    return build.graph(build.depthwise(x, (4, 1), (1, 2)), "depthwise")


def many_channels() -> Graph:
    """Pixels that lie further apart than an instruction's offset reaches."""
    build = Builder(5, (4, 5, 132), zero_point=-128)
    x = build.depthwise("input", activation="relu")
    x = build.depthwise(x, (3, 3), (2, 2))
    return build.graph(build.conv(x, 4, (3, 3)), "many_channels")


def others() -> Graph:
    """The plain kernels over int8 rows."""
    build = Builder(6, (6, 8, 5), zero_point=-7)
    x = build.average_pool("input", (2, 2), (2, 2))
    y = build.conv(x, 5, (3, 3), activation="relu", zero_point=-128)
    x = build.add(x, y, zero_point=9)
    x = build.pad(x, (1, 0, 2, 1))
    x = build.mean(x, zero_point=-20, ratio=0.7)
    return build.graph(build.softmax(x), "others")


def compare_emulated(graph: Graph, folder: Path) -> None:
    try:
        find_qemu()
        find_compiler("arm-none-eabi-gcc")
    except MissingToolError as missing:
        pytest.skip(str(missing))
    made = plan(simplify(graph), M55, LITERT)
    write_folder(folder, emit(made, Origin("mnet codegen net.tflite", "0")))
    program = build_target(folder, M55, ("SUBJECT_TRACE", "SUBJECT_POISON"), "gcc", folder / "build")
    tensors = golden.run(graph, LITERT, random_input(graph, 1, 4))
    leg = verify.run_leg("M55", made, tensors, lambda data: run_qemu(program, None, data).trace)
    assert leg.status == "equal" and leg.values > 0, "\n".join(map(str, leg.mismatches))


@pytest.mark.parametrize("network", (pointwise, windows, long_windows, speech, depthwise, many_channels, others))
def test_vectors_give_the_golden_bits(network: Callable[[], Graph], tmp_path: Path) -> None:
    compare_emulated(network(), tmp_path / "net")


@pytest.mark.parametrize("network", (windows, speech, depthwise))
def test_the_rounding_of_two_steps_in_vectors(
    network: Callable[[], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codegen.requantize, "solve_fast", lambda *arguments: None)
    codegen.requantize._requantizer.cache_clear()
    compare_emulated(network(), tmp_path / "net")
    codegen.requantize._requantizer.cache_clear()


def test_blocks_cover_a_row() -> None:
    for pixels in range(1, 50):
        for chunks in (1, 2, 4, 9, 36):
            blocks = blocks_of(pixels, chunks)
            assert sum(block.pixels * block.count for block in blocks) == pixels and len(blocks) <= 2
    assert blocks_of(1, 4) == (Block(1, 1),)


def test_groups_of_taps_stay_within_16_bits() -> None:
    random = np.random.default_rng(0)
    for spread in (3, 20, 60, 127):
        weights = np.clip(random.normal(0, spread, (25, 8)), -128, 127).astype(np.int8)
        groups, first = groups_of(weights), 0
        assert sum(groups) == len(weights)
        for taps in groups:
            group = weights[first : first + taps].astype(np.int64)
            first += taps
            ends = [np.where(group > 0, a, b) * group for a, b in ((127, -128), (-128, 127))]
            assert ends[0].sum(0).max() < 1 << 15 and ends[1].sum(0).min() >= -(1 << 15)
