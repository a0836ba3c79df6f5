"""Depthwise kernels for DSP cores in all their layouts and forms of constants; and what they cost, counted."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unicorn
from elftools.elf.elffile import ELFFile
from hypothesis import given

from codegen.call import Call
from codegen.depthwise import DepthwiseView, depthwise_accepts, depthwise_pack, depthwise_shares, depthwise_view
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16, Layout, Storage, align4
from codegen.targets import TARGETS
from mnet.counting import Edge
from mnet.cycles import BlockCosts, apply
from mnet.graph import DepthwiseConv2D, output_size
from mnet.oracle import Requantization, Rounding, requantize
from tests.kernel_harness import (
    A_BATCH,
    SEEDS,
    Case,
    Machine,
    accumulators,
    filled,
    layer,
    needs_arm,
    needs_gcc,
    run_emulated,
    run_on_host,
    storage,
    tensor,
    unsolved,
    write_sources,
)

__all__ = ["unsolved"]  # a fixture

Draw = Callable[..., Any]
NO_GRAPH: Any = None  # kernels look at the op alone


def drawing(rng: np.random.Generator, choice: dict[str, Any]) -> Draw:
    """Return a function that draws one of its options, unless `choice` has the name."""

    def draw(name: str, *options: Any) -> Any:
        return choice[name] if name in choice else options[rng.integers(len(options))]

    return draw


def drawn_layer(
    rng: np.random.Generator, draw: Draw, kernel: tuple[int, int], packed: bool
) -> tuple[DepthwiseConv2D, Requantization, tuple[int, int, int], tuple[int, int]]:
    """Return (op, requantization, shape of the input, zero points) of a random depthwise convolution."""
    height, width = draw("size", (4, 5), (3, 6), (1, 1), (2, 9), (6, 2), (5, 24), (6, 6), (3, 3), (7, 13), (12, 11))
    stride = draw("stride", 1, 2)
    if draw("same", True, True, True, False):
        total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip((height, width), kernel, strict=True)]
        padding = [total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2]
    else:
        padding = [int(rng.integers(0, (k + 1) // 2)) for k in (kernel[0], kernel[0], kernel[1], kernel[1])]
        height, width = max(height, kernel[0]), max(width, kernel[1])
    channels = draw("channels", 1, 2, 3, 4, 7, 8)
    zero_points = draw("zero_points", (-128, -128), (-128, -128), (3, -128), (-128, -7), (127, 127), (-5, 90))
    if packed:
        zero_points = (-128, zero_points[1])
    weights = rng.integers(-128, 128, (*kernel, channels)).astype(np.int8)
    if rng.integers(4) == 0:
        weights[:, :, rng.integers(channels)] = 0
    op, how = layer(
        DepthwiseConv2D,
        weights,
        draw("spread", 1, 1, 8, 0.1),
        zero_points,
        draw("rounding", Rounding.DOUBLE, Rounding.DOUBLE, Rounding.SINGLE),
        draw("activation", (-128, 127), (-128, 127), (-128, 127), (-100, 101)),
        rng,
        stride=(stride, stride),
        padding=tuple(padding),
    )
    assert isinstance(op, DepthwiseConv2D)
    return op, how, (height, width, channels), zero_points


def drawn_output(draw: Draw, op: DepthwiseConv2D, shape: tuple[int, int, int], zero_point: int) -> Storage:
    """Return where the output lies."""
    sides = [
        output_size(n, op.weights.shape[i], op.stride[i], 1, *op.padding[2 * i : 2 * i + 2])
        for i, n in enumerate(shape[:2])
    ]
    border = draw("border", (0, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 2))
    stored = draw("stored_output", shape[2], align4(shape[2]))
    target = tensor("out", (sides[0], sides[1], shape[2]), zero_point)
    return storage(target, draw("output", WIDE16, WIDE8), border, stored_channels=stored)


def drawn_values(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return quantized inputs: any, or extremes only."""
    if rng.integers(3) == 0:
        return rng.choice(np.array([-128, 127], np.int8), shape)
    return rng.integers(-128, 128, shape).astype(np.int8)


def depthwise_call(rng: np.random.Generator, draw: Draw) -> tuple[Call, str]:
    """Draw a depthwise convolution 3x3 and how its tensors lie: a ring, whole for a row, whole for a whole layer."""
    layout: Layout = draw("input", PLANAR16, PLANAR8)
    op, how, shape, zero_points = drawn_layer(rng, draw, (3, 3), layout is PLANAR8)
    target = drawn_output(draw, op, shape, zero_points[1])
    mode = draw("mode", "ring", "whole", "layer", "layer")
    if target.height == 1 and mode == "layer":
        mode = "whole"
    source = storage(
        tensor("in", shape, zero_points[0]),
        layout,
        (0, 0, 0, 0) if mode == "layer" else (*op.padding[:2], 0, 0),
        stored_channels=draw("stored_channels", shape[2], align4(shape[2])),
    )
    if mode == "ring":
        source = replace(source, slots=3)
    return Call(op, (source,), target, target.height if mode == "layer" else 1, how), mode


def depthwise_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a depthwise convolution 3x3: `choice` fixes some of what is drawn otherwise."""
    draw = drawing(rng, choice)
    call, mode = depthwise_call(rng, draw)
    assert depthwise_accepts(call.op, NO_GRAPH) is None
    compact = draw("compact", False, True)
    shared = depthwise_shares(call, compact) and draw("shared", False, False, True)
    view = depthwise_view(call, compact, shared, draw("straight", 0, 64))
    return windowed_case(rng, call, mode, view, "depthwise_dsp", lambda phase: depthwise_pack(call, view, phase))


def windowed_case(
    rng: np.random.Generator,
    call: Call,
    mode: str,
    view: object,
    template: str,
    pack: Callable[[int], tuple[int, ...]],
) -> Case:
    """Return a case of a kernel that reads three rows through one pointer: random inputs, a random row."""
    op, source, target = call.op, call.inputs[0], call.output
    assert isinstance(op, DepthwiseConv2D) and call.requantization is not None
    values = drawn_values(rng, source.tensor.shape)
    expected = requantize(accumulators(op, values, source.tensor.zero_point), call.requantization)
    if mode == "layer":
        memory = filled(source, values, 0, source.height, rng)
        return Case(call, view, template, pack(0), memory, (0,), target.top, expected)
    row = int(rng.integers(target.height))
    top = row * op.stride[0]
    memory = filled(source, values, top, 3, rng)
    pointer, phase = (0, top % 3) if mode == "ring" else (source.slot_offset(top), 0)
    return Case(call, view, template, pack(phase), memory, (pointer,), target.top + row, expected[row : row + 1])


def counted(cases: Sequence[Case], where: Path) -> list[tuple[int, int]]:
    """Return (cycles of the call on a Cortex-M4, code bytes) of each case, from what ran in the emulator."""
    names = write_sources(cases, where)
    machine = Machine(where)
    with (where / "kernels.elf").open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        sizes = {symbol.name: symbol["st_size"] for symbol in table.iter_symbols()}
    edges: dict[tuple[int, int, int], int] = {}
    before = 0

    def on_block(uc: Any, block: int, size: int, _: object) -> None:
        nonlocal before
        edges[before, block, size] = edges.get((before, block, size), 0) + 1
        before = block

    machine.uc.hook_add(unicorn.UC_HOOK_BLOCK, on_block)
    costs = BlockCosts(lambda at, size: bytes(machine.uc.mem_read(at, size)), TARGETS["cortex-m4"].timing)
    found = []
    for case, name in zip(cases, names, strict=True):
        edges.clear()
        before = 0
        machine.run(case, name)
        kernel = name.replace("call", "kernel")
        start, size = machine.address[kernel] & ~1, sizes[kernel]
        inside = [
            Edge(0, origin, block, length, 0, count)
            for (origin, block, length), count in edges.items()
            if start <= block < start + size
        ]
        found.append((sum(cost.cycles for cost in apply(inside, costs, lambda _: "").values()), size))
    return found


def form_of(case: Case) -> str:
    """Return the form of a case's requantisation."""
    view = case.view
    assert isinstance(view, DepthwiseView)
    return view.requantization.form


# ---- tests ----


def batch(seed: int, count: int) -> list[Case]:
    rng = np.random.default_rng(seed)
    return [depthwise_case(rng) for _ in range(count)]


def large_cases(seed: int = 5) -> list[Case]:
    """Return what random small shapes do not reach: every width of a row, loops over rows, far offsets."""
    rng = np.random.default_rng(seed)
    solvable: dict[str, Any] = {"rounding": Rounding.DOUBLE, "spread": 1, "channels": 8}
    cases = []
    for stride in (1, 2):
        for layout in (PLANAR16, PLANAR8):
            base = {**solvable, "stride": stride, "input": layout}
            for width in (*range(1, 20), 48, 95, 96):
                cases.append(depthwise_case(rng, **base, size=(5, width), mode="ring"))
            for size in ((25, 5), (9, 8), (9, 15), (48, 48), (11, 6), (65, 1)):
                cases.append(depthwise_case(rng, **base, size=size, mode="layer"))
            far = {**base, "channels": 257, "size": (9, 8), "mode": "layer"}
            cases.append(depthwise_case(rng, **far, output=WIDE16))
    return cases


@needs_gcc
@A_BATCH
@given(SEEDS)
def test_c_bodies_equal_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_on_host(batch(seed, 60), tmp_path_factory.mktemp("host"))


@needs_arm
@A_BATCH
@given(SEEDS)
def test_assembly_equals_integer_arithmetic(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    run_emulated(batch(seed, 60), tmp_path_factory.mktemp("arm"))


@needs_gcc
@needs_arm
def test_both_bodies_without_the_fast_form(tmp_path: Path, unsolved: None) -> None:
    cases = batch(11, 80)
    assert {form_of(case) for case in cases} >= {"shifts", "single"}
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_both_bodies_of_large_shapes(tmp_path: Path) -> None:
    cases = large_cases()
    assert all(getattr(case.view, "assembly", False) for case in cases)
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@needs_arm
def test_layers_of_one_map_share_their_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    same: dict[str, Any] = {"zero_points": (-128, -128), "activation": (-128, 127), "spread": 1, "input": PLANAR16}
    same |= {"same": True, "rounding": Rounding.DOUBLE, "output": WIDE16, "stride": 1, "border": (0, 0, 0, 0)}
    same |= {"size": (6, 6), "mode": "layer", "compact": True, "shared": True, "straight": 64}
    cases = [depthwise_case(rng, **same, channels=channels) for channels in (2, 15, 106)]
    assert len({case.view for case in cases}) == 1
    outputs = 36 * 106
    assert counted(cases, tmp_path)[-1][0] <= 13 * outputs


def test_the_phases_of_a_ring_share_one_array() -> None:
    case = depthwise_case(np.random.default_rng(2), mode="ring", compact=True, size=(5, 6))
    view = depthwise_view(case.call, compact=True)
    whole, first, second = (depthwise_pack(case.call, view, phase) for phase in range(3))
    assert first == whole[1:] and second == whole[2:]
