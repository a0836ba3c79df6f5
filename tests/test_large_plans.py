"""Networks of deployed sizes: planned within their goals of RAM, and the bits are the golden model's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from codegen.certificate import certificate
from codegen.planner import Request
from codegen.simplify import simplify
from codegen.targets import target
from mnet.graph import Graph
from mnet.oracle import LITERT
from mnet.plan_cache import cached_plan
from tests.large_models import mobilenet_v1, mobilenet_v2
from tests.test_generate import compare_on_host, described


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "most"),
    (
        pytest.param(lambda: mobilenet_v1(0.25, 224, 1000), 33_792, id="V1 0.25, 224x224"),
        pytest.param(lambda: mobilenet_v2(0.35, 96, 2), 14_336, id="V2 0.35, 96x96"),
    ),
)
def test_a_large_network_keeps_to_little_ram(build: Callable[[], Graph], most: int, tmp_path: Path) -> None:
    graph = build()
    made = cached_plan(Request(simplify(graph), target("cortex-m4"), LITERT, "rows", "ram"))
    assert made.arena_bytes <= most
    assert certificate(made).bound_bytes <= made.live_bytes
    leg = compare_on_host(graph, made, tmp_path / graph.name, count=1)
    assert leg.status == "equal" and leg.values > 0, described(graph, leg)
