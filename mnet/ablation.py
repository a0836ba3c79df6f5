"""What each idea of the code generator brings: a model profiled without them all, then with one more at a time.

Nothing is switched inside a kernel. A step leaves rows of the kernel table out (`Target.without`), or forms of the
requantisation (`Oracle.shortcuts`), or rewrites of the graph; the planner then takes the best of what there is. The
bits are the same in every step.
"""

from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from codegen.kernels import KERNELS
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.oracle import SHORTCUTS, Oracle
from mnet.pipeline import Options, Prepared, prepare
from mnet.profile import ModelProfile, profile_model

SHIFTS = frozenset({"shifts"})


def _families(*patterns: str) -> frozenset[str]:
    """Return the families of kernels whose names match; plain C is "convolution" and "depthwise"."""
    return frozenset(kernel.family for kernel in KERNELS if any(fnmatch(kernel.family, p) for p in patterns))


@dataclass(frozen=True)
class Step:
    """One more idea: what is still left out."""

    name: str
    without: frozenset[str] = frozenset()  # families of kernels
    shortcuts: frozenset[str] = SHORTCUTS  # forms of the requantisation that may stand for the runtime's own steps
    dead_channels: bool = False  # whether they are removed


STEPS = (
    Step("plain C, the runtime's own requantisation", _families("convolution_*", "depthwise_*"), frozenset()),
    Step("convolutions in assembly, two weights in a lane", _families("depthwise_*", "*_fpu"), SHIFTS),
    Step("requantisation in two instructions", _families("depthwise_*", "*_fpu")),
    Step("depthwise in assembly, over planes in rings", _families("*_fpu")),
    Step("weights of few taps in FPU registers"),
    Step("dead channels removed", dead_channels=True),
)


@dataclass(frozen=True)
class Result:
    """A step and what it leads to."""

    step: str
    profile: ModelProfile

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def ablate(model: Path, options: Options) -> list[Result]:
    """Profile `model` in each of STEPS.

    Raises:
        PlanError: the target's kernels are not those of DSP instructions and an FPU, so that few steps would matter.
        MnetError: as `prepare` and `profile_model`.
    """
    full = prepare(model, options)
    target = full.plan.target
    if not target.dsp or not target.fpu or target.mve:
        raise PlanError(f"the steps are about kernels that {target.name} does not use: choose --target cortex-m4.")
    return [Result(step.name, profile_model(without(full, step))) for step in STEPS]


def without(full: Prepared, step: Step) -> Prepared:
    """Return the model planned with what the step has."""
    target: Target = replace(full.plan.target, without=step.without)
    whose: Oracle = replace(full.plan.oracle, shortcuts=step.shortcuts)
    graph = full.graph if step.dead_channels else simplify(full.source)
    made = plan(graph, target, whose, full.plan.input_mode, full.options.optimize)
    assert not step.without & {op.kernel.family for op in made.ops}
    return replace(full, graph=graph, plan=made)
