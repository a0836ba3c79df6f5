"""`mnet demo`: the whole road on bundled images, in minutes, and a table of what came out."""

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnet import pipeline, verify
from mnet.commands.console import Column, is_quiet, print_json, print_table, progress, write_text
from mnet.commands.profile import ModelProfile, profile_model
from mnet.commands.verify import COLUMNS, explain, row
from mnet.datasets import Dataset, balanced_choice
from mnet.errors import MissingToolError, MnetError
from mnet.evaluation import evaluate_int8
from mnet.graph import Graph, Int8Array
from mnet.pipeline import Options, Prepared, prepare
from mnet.progress import progress_bar
from mnet.proof import Proof, prove
from mnet.quantization import QuantizationOptions, quantize
from mnet.report import RANDOM_INPUTS, Report, clocks_of, html
from mnet.sources import load
from mnet.training import train
from mnet.training_task import TrainingOptions

_NAME = "fashion"  # of the model and of its C functions
_FIGURES, _REPORT = "demo.json", "report.html"
_MADE = {"run", "run.partial", "run.old", f"{_NAME}.tflite", _NAME, _FIGURES, _REPORT}
_EPOCHS = 24
_REAL, _RANDOM, _EMULATED = 10, 10, 6  # inputs of the proof; how many of them the emulated core runs
_CORE = "cortex-m4"
_MEGAHERTZ = 80  # of the clock that the table's milliseconds are for


@dataclass(frozen=True)
class _Figures:
    """What the demo found out."""

    data: str
    float_accuracy: float
    int8_accuracy: float
    test_images: int
    arena_bytes: int
    profile: ModelProfile | None
    not_profiled: str  # why, where profile is None
    proof: Proof
    seconds: float


def run(out: Path, epochs: int | None, json_file: str | None) -> int:
    """Do everything, print it, and return the exit code of the proof.

    Raises:
        MnetError: `out` holds something else.
    """
    _clear(out)
    say = json_file != "-"
    began = time.monotonic()
    data = load("sample")
    with _step(say, f"train MobileNet V1, alpha 0.25, on {data}"):
        options = TrainingOptions("sample", out / "run", recipe="sample", epochs=epochs or _EPOCHS, overwrite=True)
        if is_quiet():
            trained = train(options)
        else:
            with progress_bar() as report:
                trained = train(options, report)
    model = out / f"{_NAME}.tflite"
    with _step(say, "quantize to int8"):
        quantize(QuantizationOptions(out / "run", model))
        int8 = evaluate_int8(model, data.x_test, data.y_test)
    with _step(say, "generate C for any Cortex-M"):
        prepared = prepare(model, Options("cortex-m"))
        pipeline.write(prepared, out / _NAME)
    with _step(say, "compile for this computer and a Cortex-M4, run both, compare every byte of every layer"):
        inputs = _inputs(prepared.source, data)
        with progress() as report_leg:
            proof = prove(prepared, emulated_count=_EMULATED, inputs=inputs, progress=report_leg, cores=(_CORE,))
    with _step(say, "count instructions and cycles on the Cortex-M4"):
        profile, reason = _profiled(prepared)
    figures = _Figures(
        data=data.description,
        float_accuracy=trained.test_accuracy,
        int8_accuracy=int8.fraction,
        test_images=int8.images,
        arena_bytes=prepared.plan.arena_bytes,
        profile=profile,
        not_profiled=reason,
        proof=proof,
        seconds=round(time.monotonic() - began, 1),
    )
    print_json(asdict(figures), str(out / _FIGURES))
    clocks = clocks_of(prepared.plan.target)
    page = Report(prepared, profile, reason, proof, clocks, f"test images, one of each class, and {RANDOM_INPUTS}")
    write_text(out / _REPORT, html(page))
    if json_file:
        print_json(asdict(figures), json_file)
    if say:
        _print(out, prepared, figures)
    return proof.exit_code


def _clear(out: Path) -> None:
    """Remove what an earlier demo left; anything else stays, and is a reason to stop."""
    if out.exists() and not out.is_dir():
        raise MnetError(f"{out} is a file: choose another folder with -o.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        strangers = sorted(entry.name for entry in out.iterdir() if entry.name not in _MADE)
        if strangers:
            raise MnetError(f"{out} holds {strangers[0]}, which no demo made: choose another folder with -o.")
        for entry in out.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    except OSError as error:
        raise MnetError(f"{out} cannot be written ({error.strerror}): choose another folder with -o.") from None


@contextmanager
def _step(say: bool, what: str) -> Iterator[None]:
    """Announce a piece of work, and say how long it took."""
    if say:
        print(f"* {what}", flush=True)
    began = time.monotonic()
    yield
    if say:
        print(f"  {time.monotonic() - began:.0f} s", flush=True)


def _inputs(graph: Graph, data: Dataset) -> dict[str, Int8Array]:
    """Return test images, one of each class, and random inputs in turn: the first few hold both kinds."""
    chosen = balanced_choice(data.y_test, _REAL, seed=0)
    real = (data.x_test[chosen] ^ 0x80).view(np.int8)  # byte - 128
    (name,) = graph.inputs
    random = verify.random_inputs(graph, _RANDOM, seed=0)[name]
    return {name: np.stack([image for pair in zip(real, random, strict=True) for image in pair])}


def _profiled(prepared: Prepared) -> tuple[ModelProfile | None, str]:
    try:
        return profile_model(prepared), ""
    except MissingToolError as error:
        return None, str(error)


def _print(out: Path, prepared: Prepared, figures: _Figures) -> None:
    profile, proof = figures.profile, figures.proof
    count = f"{figures.test_images:,} test images, {figures.data}"
    rows: list[tuple[str, str, str]] = [
        ("accuracy, float", f"{figures.float_accuracy:.2%}", count),
        ("accuracy, int8", f"{figures.int8_accuracy:.2%}", "the same images, LiteRT's reference kernels"),
    ]
    if profile is None:
        rows.append(("arena", f"{figures.arena_bytes:,} B", "RAM"))
        rows.append(("flash, stack, cycles", "not run", figures.not_profiled))
    else:
        ram = profile.arena_bytes + (profile.stack_bytes or 0)
        milliseconds = profile.cycles / _MEGAHERTZ / 1000
        parts = f"code {profile.code_bytes:,} + weights and constants {profile.constant_bytes:,}"
        rows += [
            ("flash", f"{profile.flash_bytes:,} B", parts),
            ("RAM", f"{ram:,} B", f"arena {profile.arena_bytes:,} + stack {profile.stack_bytes or 0:,}"),
            ("instructions", f"{profile.instructions:,}", f"counted in {profile.emulator}; {profile.compiler}"),
            ("cycles, Cortex-M4", f"{profile.cycles:,}", f"modelled: {milliseconds:.1f} ms at {_MEGAHERTZ} MHz"),
        ]
    differing = sum(leg.differing for leg in proof.legs)
    compared = sum(leg.values for leg in proof.legs)
    rows.append(("bytes compared", f"{compared:,}", f"{differing:,} differ, all legs together"))
    print()
    print_table((Column("result"), Column("", True), Column("")), rows)
    print()
    print_table(COLUMNS, [row(leg) for leg in proof.legs])
    for leg in proof.legs:
        if leg.reason:
            print(f"\n{leg.name}, {leg.status}: {leg.reason}")
        for mismatch in leg.mismatches:
            print("\n" + explain(prepared, proof, leg, mismatch))
    print(
        f"\n{figures.seconds:.0f} s of work. Trained briefly on few images: it shows the road, not the best network.\n"
    )
    model, code = out / f"{_NAME}.tflite", out / _NAME
    _print_pairs(
        (
            (f"{out / 'run'}", "the float model, its history and model card"),
            (f"{model}", "the int8 model: any tool for TensorFlow Lite opens it"),
            (f"{code / _NAME}.h", f"the C sources begin here; {code / 'test'} proves them again"),
            (f"{out / _FIGURES}", "these figures"),
            (f"{out / _REPORT}", "all of it on a page for your browser, with a picture of the memory"),
        )
    )
    print("\nNext:")
    mnet = _command()
    _print_pairs(
        (
            (f"make -C {code} test", "with a C compiler and nothing else"),
            (f"{mnet} verify {model} --target cortex-m", "on six emulated cores"),
            (f"{mnet} profile {model} --target {_CORE}", "layer by layer"),
            (f"{mnet} show {model} --target {_CORE} --stage memory", "where every row lies, and how long"),
            (f"{mnet} train --data cifar10 --epochs 60 --out cifar", "a network of your own"),
        )
    )


def _command() -> str:
    """Return how this user calls mnet: by its name where that is on the PATH, else as it was called now."""
    return "mnet" if shutil.which("mnet") or Path(sys.argv[0]).name != "mnet" else sys.argv[0]


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(left) for left, _ in pairs)
    for left, right in pairs:
        print(f"  {left:{width}}  {right}")
