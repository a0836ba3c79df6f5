"""What the cost functions of cores without DSP instructions, and of those with vectors, say, against counted runs."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from codegen.call import Cost
from codegen.emit import Origin, emit, write_folder
from codegen.packed_cost import block_cost, packed_cost
from codegen.plan import PlannedOp
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import Target, target
from mnet.cycles import profile_folder
from mnet.errors import MissingToolError
from mnet.graph import Graph
from mnet.oracle import LITERT, Rounding
from tests.kernel_harness import Case, measured, needs_arm, unsolved
from tests.models import Builder
from tests.strategies import random_input
from tests.test_kernels_mve import depthwise, many_channels, pointwise, speech, windows
from tests.test_kernels_packed import case_of, large_cases

__all__ = ["unsolved"]  # a fixture
CORES = ("cortex-m0", "cortex-m0plus", "cortex-m3")
LARGE = 4000  # cycles, from which on the ends of loops do not matter
ASSEMBLY = frozenset({"dsp", "fpu", "bytes", "shared", "narrow", "wide", "packed", "block", "mve"})


def errors(cases: list[Case], core: str, where: Path) -> np.ndarray:
    """Return [cases, 2]: how far off cycles and code bytes of large cases are, as shares."""
    timing = target(core).timing
    found = []
    for case, counted in zip(cases, measured(cases, where, "M3" if core == "cortex-m3" else "M0", timing), strict=True):
        packed = case.template == "convolution_packed"
        said = packed_cost(case.call, case.view, timing) if packed else block_cost(case.view, timing)  # type: ignore[arg-type]
        if counted.cycles >= LARGE:
            found.append((said.cycles / counted.cycles - 1, said.code_bytes / counted.code_bytes - 1))
    assert found
    return np.abs(found)


@needs_arm
@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_costs_of_packed_convolutions_and_of_blocks(core: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(13)
    common = {"rounding": Rounding.DOUBLE, "deviation": 20, "spread": 1}
    cases = [case_of(rng, i % 2 == 1, size=(4, 17), **common) for i in range(80)] + large_cases()
    cases = [case for case in cases if case.view.short]  # type: ignore[attr-defined]
    for template, mean, most in (("convolution_packed", 0.025, 0.13), ("depthwise_block", 0.05, 0.15)):
        (where := tmp_path / template).mkdir()
        found = errors([case for case in cases if case.template == template], core, where)
        assert found[:, 0].mean() < mean and found[:, 0].max() < most
        assert found[:, 1].mean() < 0.1 and found[:, 1].max() < 0.3


@needs_arm
@pytest.mark.slow
@pytest.mark.parametrize("core", CORES)
def test_costs_without_the_short_form(core: str, tmp_path: Path, unsolved: None) -> None:
    rng = np.random.default_rng(14)
    cases = [case_of(rng, i % 2 == 1, size=(4, 17), rounding=Rounding.DOUBLE) for i in range(50)]
    found = errors(cases, core, tmp_path)
    assert found[:, 0].mean() < 0.12 and found[:, 0].max() < 0.3


def layers(graph: Graph, core: Target) -> list[tuple[PlannedOp, Cost, float]]:
    """Return the layers of a network: op, what its formula says of a call, and what one was counted to take."""
    made = plan(simplify(graph), core, LITERT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "net"
        write_folder(folder, emit(made, Origin("mnet codegen net.tflite", "0")))
        image = b"".join(random_input(graph, 1, 4)[tensor][0].tobytes() for tensor in graph.inputs)
        try:
            counted = profile_folder(folder, core, image, Path(name) / "build").entries
        except MissingToolError as missing:
            pytest.skip(str(missing))
    found = []
    for op in made.ops:
        entries = [number for number, entry in enumerate(made.entries) if entry.op == op.name]
        calls = sum(made.entry_calls[number] for number in entries)
        said = op.kernel.price(op.call, op.view, core.timing)
        assert said is not None
        found.append((op, said, sum(counted[number].cycles for number in entries) / calls))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("network", (pointwise, windows, speech, depthwise, many_channels))
def test_costs_of_vectors(network: Callable[[], Graph]) -> None:
    for op, said, counted in layers(network(), target("cortex-m55")):
        if op.kernel.family.endswith("_mve"):
            assert said.cycles == pytest.approx(counted, rel=0.05, abs=8), op.view


def plain() -> Graph:
    """All that plain C has factors for."""
    build = Builder(1, (4, 12, 8), zero_point=-128)
    x = build.conv("input", 16, (3, 3), activation="relu", zero_point=-128)
    x = build.conv(x, 16, activation="none")
    x = build.depthwise(x, (3, 3), activation="relu", zero_point=-128)
    x = build.conv(x, 8, (3, 3), (2, 2), activation="relu", zero_point=-128)
    return build.graph(build.softmax(x), "plain")


@pytest.mark.slow
@pytest.mark.parametrize("core", ("cortex-m0plus", "cortex-m3", "cortex-m4"))
def test_costs_of_plain_c(core: str) -> None:
    families = {"convolution", "depthwise"}
    without = frozenset(f"{family}_{kind}" for family in families for kind in ASSEMBLY)
    ratios = {}
    for op, said, counted in layers(plain(), replace(target(core), without=without)):
        ratios[op.name, op.kernel.family] = said.cycles / counted
    assert {family for _, family in ratios} == {"convolution", "depthwise", "softmax"}
    assert all(0.75 < ratio < 1.33 for ratio in ratios.values()), ratios
    assert abs(np.mean(list(ratios.values())) - 1) < 0.1, ratios
