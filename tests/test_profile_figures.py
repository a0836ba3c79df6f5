"""Cycles, instructions, flash and RAM of known models may not grow; tests/figures holds what they were.

`pytest tests/test_profile_figures.py --update-figures` writes the files anew: do it where a change was meant, or an
improvement is to be kept, and read the diff. Figures hold for one compiler: another one skips.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mnet import figures, proof, resources, toolchain
from mnet.errors import ToolError
from mnet.figures import Change
from mnet.pipeline import Options, prepare
from mnet.profile import profile_model

FOLDER = Path(__file__).parent / "figures"
BUNDLED = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Case:
    """One model on one core; plans of these figures need the solver (the extra `solver`), which the tests install."""

    model: str
    target: str
    options: Options = field(default_factory=Options)

    @property
    def name(self) -> str:
        parts = [self.model]
        parts += [] if self.options.simplify else ["dense"]
        parts += [] if self.options.optimize == "balanced" else [self.options.optimize]
        parts += [] if self.options.ram is None else [str(self.options.ram)]
        return f"{'-'.join(parts)}.{self.target}"

    def path(self) -> Path:
        """Return the model's file, or skip."""
        bundled = BUNDLED / f"{self.model}.tflite"
        shared = resources.shared_folder()
        if not bundled.is_file() and shared is None:
            pytest.skip("no $MNET_SHARED")
        return bundled if bundled.is_file() else shared / "models" / bundled.name


VWW, KWS = "vww_96_int8", "kws_ref_model"
CASES = (
    Case("sample_a25", "cortex-m4"),
    Case("cifar10_a25", "cortex-m4"),
    Case(VWW, "cortex-m4"),
    Case(VWW, "cortex-m4", Options(simplify=False)),
    # the least RAM, and the most speed within little: rows pushed, an image that the arena consumes
    Case("cifar10_a25", "cortex-m4", Options(input_mode="rows", optimize="ram")),
    Case(VWW, "cortex-m4", Options(input_mode="rows", optimize="ram")),
    Case(VWW, "cortex-m4", Options(input_mode="rows", optimize="cycles", ram=11264)),
    Case(VWW, "cortex-m4", Options(input_mode="arena", optimize="cycles", ram=28672)),
    Case(KWS, "cortex-m4", Options(input_mode="rows", optimize="cycles", ram=4352)),
    Case("pretrainedResnet_quant", "cortex-m4", Options(input_mode="rows", optimize="cycles", ram=11264)),
    Case(KWS, "cortex-m4"),
    Case("pretrainedResnet_quant", "cortex-m4"),
    Case("ad01_int8", "cortex-m4"),
    *(Case(model, core) for model in (VWW, KWS) for core in ("cortex-m0plus", "cortex-m3", "cortex-m55")),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_figures_do_not_grow(case: Case, update_figures: bool) -> None:
    model, file = case.path(), FOLDER / f"{case.name}.json"
    assert update_figures or file.is_file(), f"{file.name} is new: run pytest {Path(__file__).name} --update-figures"
    try:
        kind = proof.find_target_compiler()
        compiler = toolchain.find_compiler("arm-none-eabi-gcc" if kind == "gcc" else kind).version
        old = json.loads(file.read_text()) if file.is_file() else None
        if old is not None and not update_figures and old["compiler"] != compiler:
            pytest.skip(f"the figures are of {old['compiler']}, not {compiler}")
        profile = profile_model(prepare(model, replace(case.options, target=case.target)))
    except ToolError as error:
        pytest.skip(str(error))
    new = json.loads(json.dumps(figures.summary(profile.as_json())))
    if update_figures:
        FOLDER.mkdir(exist_ok=True)
        file.write_text(json.dumps(new, indent=1) + "\n")
        return
    assert old is not None
    for what in new:
        assert what in figures.TOTALS or new[what] == old[what], f"{what} is {new[what]}, was {old[what]}"
    grown = figures.over_limit(Change("", what, old[what], new[what]) for what in figures.TOTALS)
    assert not grown, f"{case.name}: {grown} If that was meant: pytest tests/{Path(__file__).name} --update-figures"


def test_a_figure_may_grow_by_its_limit_only() -> None:
    assert figures.over_limit([Change("", "cycles", 1000, 1009), Change("", "flash_bytes", 1000, 1019)]) == ""
    assert "cycles grew by 1.10 %" in figures.over_limit([Change("", "cycles", 1000, 1011)])
    assert "arena bytes grew by 2.10 %" in figures.over_limit([Change("", "arena_bytes", 1000, 1021)])
    assert figures.over_limit([Change("", "cycles", None, 7), Change("", "stack_bytes", 100, 200)]) == ""
