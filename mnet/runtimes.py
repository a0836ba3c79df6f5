"""Other people's runtimes, as rows of a table. Each takes a model and inputs, and gives back every tensor.

To add one: a module with a function like `run_litert`, and a row here; an oracle of the same name is compared with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mnet.graph import Graph, Int8Array
from mnet.litert_runtime import Kernels, run_litert
from mnet.oracle import Oracle
from mnet.tflm_runtime import run_tflm

# model, the graph that was read from it, inputs by name -> every tensor by name, all of them int8
# [n, height, width, channels]. Raises MissingToolError where the package is not installed, ToolError for a refusal.
Run = Callable[[Path | bytes, Graph, Mapping[str, Int8Array]], dict[str, Int8Array]]


@dataclass(frozen=True)
class Runtime:
    """A runtime that mnet can drive."""

    name: str  # what the user types
    title: str  # in tables
    run: Run


RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime("litert", "LiteRT reference kernels", run_litert),
        Runtime("litert-optimised", "LiteRT optimised kernels", partial(run_litert, kernels=Kernels.OPTIMISED)),
        Runtime("xnnpack", "LiteRT with XNNPACK", partial(run_litert, kernels=Kernels.XNNPACK)),
        Runtime("tflm", "TFLM", run_tflm),
    )
}


def runtime_of(oracle: Oracle) -> Runtime:
    """Return the runtime whose bits `oracle` promises."""
    return RUNTIMES[oracle.name]
