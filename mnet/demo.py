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
from mnet.zoo import entry

_NAME = "fashion"  # of the model that is trained and of its C functions
_SHIPPED = "fashion-tiny"  # of the zoo: what longer training gives, and the speed and memory of a network made for it
_FIGURES, _REPORT = "demo.json", "report.html"
_MADE = {"run", "run.partial", "run.old", f"{_NAME}.tflite", _NAME, _SHIPPED, _FIGURES, _REPORT}
_EPOCHS = 24
_REAL, _RANDOM, _EMULATED = 10, 10, 6  # inputs of the proof; how many of them the emulated core runs
_CORE = "cortex-m4"
_MEGAHERTZ = 80  # of the clock that the table's milliseconds are for


@dataclass(frozen=True)
class _Shipped:
    """The same of a model of the zoo, which was trained before, and what it takes of a board."""

    name: str
    int8_accuracy: float
    arena_bytes: int
    profile: ModelProfile | None
    not_profiled: str  # why, where profile is None
    proof: Proof


@dataclass(frozen=True)
class _Figures:
    """What the demo found out."""

    data: str
    float_accuracy: float
    int8_accuracy: float
    test_images: int
    proof: Proof
    zoo: _Shipped
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
    with _step(say, f"zoo:{_SHIPPED}, which comes with mnet: generate, prove, count instructions and cycles"):
        zoo, page = _shipped(out, data)
    figures = _Figures(
        data=data.description,
        float_accuracy=trained.test_accuracy,
        int8_accuracy=int8.fraction,
        test_images=int8.images,
        proof=proof,
        zoo=zoo,
        seconds=round(time.monotonic() - began, 1),
    )
    print_json(asdict(figures), str(out / _FIGURES))
    write_text(out / _REPORT, html(page))
    if json_file:
        print_json(asdict(figures), json_file)
    if say:
        _print(out, prepared, page.prepared, figures)
    return max(proof.exit_code, zoo.proof.exit_code)


def _shipped(out: Path, data: Dataset) -> tuple[_Shipped, Report]:
    """Do with a model of the zoo what was done with the trained one, and look at its speed and memory."""
    model = entry(_SHIPPED).tflite
    prepared = prepare(model, Options("cortex-m4", input_mode="rows"))
    pipeline.write(prepared, out / _SHIPPED, data.class_names)
    with progress() as report_leg:
        proof = prove(
            prepared,
            emulated_count=_EMULATED,
            inputs=_inputs(prepared.source, data),
            progress=report_leg,
            cores=(_CORE,),
        )
    profile, reason = _profiled(prepared)
    zoo = _Shipped(
        name=_SHIPPED,
        int8_accuracy=evaluate_int8(model, data.x_test, data.y_test).fraction,
        arena_bytes=prepared.plan.arena_bytes,
        profile=profile,
        not_profiled=reason,
        proof=proof,
    )
    inputs = f"test images, one of each class, and {RANDOM_INPUTS}"
    return zoo, Report(prepared, profile, reason, proof, clocks_of(prepared.plan.target), inputs)


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


def _print(out: Path, prepared: Prepared, shipped: Prepared, figures: _Figures) -> None:
    proof, zoo = figures.proof, figures.zoo
    rows = [
        ("accuracy, float", f"{figures.float_accuracy:.2%}", f"{figures.test_images:,} test images, {figures.data}"),
        ("accuracy, int8", f"{figures.int8_accuracy:.2%}", "the same images, LiteRT's reference kernels"),
        ("bytes compared", *_compared(proof)),
        ("",),
        (
            f"zoo:{zoo.name}",
            f"{zoo.int8_accuracy:.2%}",
            "int8, the same test images: trained for longer, on more images",
        ),
        *_board_rows(zoo),
        ("bytes compared", *_compared(zoo.proof)),
    ]
    print()
    print_table((Column("result"), Column("", True), Column("")), rows)
    print()
    for model, its in ((prepared, proof), (shipped, zoo.proof)):
        print_table(COLUMNS, [row(leg) for leg in its.legs], f"{model.path.name}\n")
        for leg in its.legs:
            if leg.reason:
                print(f"\n{leg.name}, {leg.status}: {leg.reason}")
            for mismatch in leg.mismatches:
                print("\n" + explain(model, its, leg, mismatch))
        print()
    print(f"{figures.seconds:.0f} s of work. {_NAME} was trained briefly on few images: it shows the road.\n")
    _print_files(out)


def _print_files(out: Path) -> None:
    """Say what lies where, and what one may do with it."""
    model, code = out / f"{_NAME}.tflite", out / _NAME
    _print_pairs(
        (
            (f"{out / 'run'}", "the float model, its history and model card"),
            (f"{model}", "the int8 model: any tool for TensorFlow Lite opens it"),
            (f"{code / _NAME}.h", f"the C sources begin here; {code / 'test'} proves them again"),
            (f"{out / _FIGURES}", "these figures"),
            (f"{out / _REPORT}", f"zoo:{_SHIPPED} on a page for your browser, with a picture of the memory"),
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
            (f"{mnet} zoo", "other models that come with mnet"),
            (f"{mnet} train --data cifar10 --recipe tiny", "a network of your own: about 40 minutes of one core"),
        )
    )


def _compared(proof: Proof) -> tuple[str, str]:
    differing = sum(leg.differing for leg in proof.legs)
    return f"{sum(leg.values for leg in proof.legs):,}", f"{differing:,} differ, all legs together"


def _board_rows(zoo: _Shipped) -> list[tuple[str, str, str]]:
    """Return what a model takes of a board, its image pushed row by row."""
    profile = zoo.profile
    if profile is None:
        missing = ("flash, stack, cycles", "not run", zoo.not_profiled)
        return [("arena", f"{zoo.arena_bytes:,} B", "RAM, the image pushed row by row"), missing]
    milliseconds = profile.cycles / _MEGAHERTZ / 1000
    parts = f"code {profile.code_bytes:,} + weights and constants {profile.constant_bytes:,}"
    ram = f"arena {profile.arena_bytes:,} + stack {profile.worst_stack_bytes:,}, the image pushed row by row"
    return [
        ("flash", f"{profile.flash_bytes:,} B", parts),
        ("RAM", f"{profile.arena_bytes + profile.worst_stack_bytes:,} B", ram),
        ("instructions", f"{profile.instructions:,}", f"counted in {profile.emulator}; {profile.compiler}"),
        ("cycles, Cortex-M4", f"{profile.cycles:,}", f"modelled: {milliseconds:.1f} ms at {_MEGAHERTZ} MHz"),
    ]


def _command() -> str:
    """Return how this user calls mnet: by its name where that is on the PATH, else as it was called now."""
    return "mnet" if shutil.which("mnet") or Path(sys.argv[0]).name != "mnet" else sys.argv[0]


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(left) for left, _ in pairs)
    for left, right in pairs:
        print(f"  {left:{width}}  {right}")
