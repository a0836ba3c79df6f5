"""Plans and C of tiny networks, as somebody last read them; `pytest --update-snapshots` writes them anew."""

from collections.abc import Callable
from pathlib import Path

import pytest

from codegen.emit import Origin, emit
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet.graph import Graph
from mnet.oracle import LITERT
from tests.models import tiny_autoencoder, tiny_fusion, tiny_mobilenet, tiny_residual

FOLDER = Path(__file__).parent / "snapshots"


def compare(name: str, text: str, update: bool) -> None:
    path = FOLDER / name
    if update:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{name} is new: run pytest --update-snapshots and read it"
    assert text == path.read_text(), (
        f"{name} changed: if that was meant, run pytest --update-snapshots and read the diff"
    )


@pytest.mark.parametrize("core", ("cortex-m4", "cortex-m0"))
@pytest.mark.parametrize("build", (tiny_mobilenet, tiny_residual, tiny_autoencoder))
def test_plan(build: Callable[[], Graph], core: str, update_snapshots: bool) -> None:
    made = plan(simplify(build()), target(core), LITERT)
    compare(f"{build.__name__}.{core}.plan.txt", f"{made}\n", update_snapshots)


def test_generated_c(update_snapshots: bool) -> None:
    """Tables, runner and interface of one network; kernels have tests of their own."""
    made = plan(simplify(tiny_residual()), target("cortex-m0"), LITERT, "rows")
    files = emit(made, Origin("mnet codegen tiny_residual.tflite --target cortex-m0 --input rows", "0"))
    name = made.graph.name
    text = files[f"{name}.c"]
    compare(f"{name}.c.txt", text[text.index("/* ---- tables") :], update_snapshots)
    compare(f"{name}.h.txt", files[f"{name}.h"], update_snapshots)


def test_a_header_for_several_inputs_and_outputs(update_snapshots: bool) -> None:
    made = plan(simplify(tiny_fusion()), target("cortex-m0"), LITERT, "rows")
    files = emit(made, Origin("mnet codegen tiny_fusion.tflite --target cortex-m0 --input rows", "0"))
    compare("tiny_fusion.h.txt", files["tiny_fusion.h"], update_snapshots)
