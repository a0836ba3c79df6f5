"""The same images on LiteRT, on the golden model, on C here and on an emulated core: how well each classifies them, and
whether every byte of every output is the same.

The legs are those of `mnet verify`, but only outputs are compared, of many images, by programs that are built as
firmware is: no trace, no poison.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from codegen.targets import target
from mnet import golden
from mnet.datasets import LabelledImages, batches
from mnet.errors import MissingToolError, MnetError, ToolError
from mnet.evaluation import Evaluation, classes_of, confusion, images_at_once, predictions, quantized
from mnet.graph import Graph, Int8Array
from mnet.pipeline import Options, check_oracle, oracle, prepare, write
from mnet.proof import Program, core_program, host_program
from mnet.runtimes import RUNTIMES
from mnet.sides import EMULATED, HOST, core_of

GOLDEN = "golden"
LEGS = (GOLDEN, HOST, *RUNTIMES, EMULATED)
_EMULATED_AT_ONCE = 50  # images of one run in an emulator, which has to end within its time
_DIFFERENCES = 5  # that a leg shows

Outputs = npt.NDArray[Any]  # [images, values], of the type of the model's output
Answer = Callable[[Int8Array], Outputs]  # images -> outputs
Progress = Callable[[str, int, int], None]  # name of the leg, images done, images in all


@dataclass(frozen=True)
class Difference:
    """The first value of an image's output that is not the reference's."""

    image: int  # its number in the data
    label: int
    value: int  # its place in the output
    got: int
    expected: int
    predicted: int  # class by this output
    expected_class: int  # by the reference's


@dataclass(frozen=True, eq=False)
class EvaluatedLeg:
    """What one of LEGS made of the images."""

    name: str
    runtime: str  # who that is, in words
    status: str  # run (the reference of all others), equal, differs, failed, not run
    evaluation: Evaluation | None = None  # None where it failed or was not run
    differing: int = 0  # images whose output has another byte than the reference's
    disagreeing: int = 0  # images of them that are taken for another class
    differences: tuple[Difference, ...] = ()  # the first few
    reason: str = ""  # why it failed or was not run


def exit_code(legs: Sequence[EvaluatedLeg]) -> int:
    """Return 0 if every leg gave the same bytes, 1 if one differs or failed, 3 if one could not run."""
    if any(leg.status in ("differs", "failed") for leg in legs):
        return 1
    return 3 if any(leg.status == "not run" for leg in legs) else 0


def legs_of(words: str | None, options: Options, emulated: int | None) -> tuple[str, ...]:
    """Return the legs that a user names, A,B,C, or the whole chain of proof; the reference is the first.

    Args:
        words: names out of LEGS, or None.
        options: whose oracle is the reference where it is among them, and whose target is emulated.
        emulated: images for the emulated core; with 0 it is left out.

    Raises:
        MnetError: there is no such leg, none is left, or the emulated one is named for a plan that runs on no core.
    """
    runtime, planned = oracle(options.oracle).name, target(options.target)
    whole = (runtime, GOLDEN, HOST, *[EMULATED] * bool(planned.runs_on))
    named = whole if words is None else tuple(word.strip() for word in words.split(","))
    for name in named:
        if name not in LEGS:
            raise MnetError(f"--on {name}: there is no such leg; the legs are {', '.join(LEGS)}.")
    if emulated == 0:
        named = tuple(name for name in named if name != EMULATED)
    if EMULATED in named:
        core_of(planned)
    if not named:
        raise MnetError("--on emulated with --emulated 0 leaves nobody to run the model.")
    return tuple(sorted(set(named), key=lambda name: (name != runtime, LEGS.index(name))))


def evaluate_legs(
    path: Path,
    graph: Graph,
    images: LabelledImages,
    legs: Sequence[str],
    options: Options,
    emulated: int | None,
    progress: Progress,
) -> tuple[EvaluatedLeg, ...]:
    """Let every leg classify the images, and compare its outputs with those of the first that runs.

    Args:
        path: of the model.
        graph: as it stands in the file; one input, one output.
        images: uint8, of the model's size, with labels that it can give.
        legs: some of LEGS, the reference first and the emulated one last.
        options: of generated code, and whose rounding.
        emulated: images for the emulated core, evenly over the classes; None for all.
        progress: called as images are done.

    Raises:
        MnetError: images that do not fit, or a model that cannot be planned.
    """
    check_oracle(path, graph, oracle(options.oracle))
    quantized(str(path), graph, images.x[:1])  # the sentence, before anything is built
    found: list[EvaluatedLeg] = []
    reference: Outputs | None = None
    with tempfile.TemporaryDirectory(prefix="mnet-") as place:
        makers = _makers(path, graph, legs, options, Path(place))
        for name in legs:
            part = images.some(emulated) if name == EMULATED and emulated is not None else images
            at_once = images_at_once(graph, _EMULATED_AT_ONCE) if name == EMULATED else images_at_once(graph)
            try:
                title, answer = makers[name]()
                outputs = _run(title, answer, graph, part, at_once, progress)
            except ToolError as error:
                status = "not run" if isinstance(error, MissingToolError) else "failed"
                found.append(EvaluatedLeg(name, _title(name, options), status, reason=str(error)))
                continue
            counts = confusion(part.y, predictions(graph, outputs), classes_of(graph))
            leg = EvaluatedLeg(name, title, "run", Evaluation(title, counts))
            if reference is None:
                reference = outputs
            else:
                leg = _compared(leg, graph, part, outputs, reference[np.searchsorted(images.numbers, part.numbers)])
            found.append(leg)
    return tuple(found)


def _makers(
    path: Path, graph: Graph, legs: Sequence[str], options: Options, place: Path
) -> Mapping[str, Callable[[], tuple[str, Answer]]]:
    """Return for each leg what makes it ready: how to call it, and how to let it answer."""
    content = path.read_bytes()

    def of_tensors(title: str, run: Callable[[Mapping[str, Int8Array]], Mapping[str, Int8Array]]) -> tuple[str, Answer]:
        return title, lambda x: run({graph.inputs[0]: x})[graph.outputs[0]].reshape(len(x), -1)

    makers: dict[str, Callable[[], tuple[str, Answer]]] = {
        name: partial(of_tensors, runtime.title, partial(runtime.run, content, graph))
        for name, runtime in RUNTIMES.items()
    }
    makers[GOLDEN] = partial(of_tensors, _title(GOLDEN, options), partial(golden.run, graph, oracle(options.oracle)))
    if {HOST, EMULATED} & set(legs):
        prepared = prepare(path, options)
        folder = place / prepared.graph.name
        write(prepared, folder)
        makers[HOST] = lambda: _of_program(graph, *host_program(folder, ()))
        makers[EMULATED] = lambda: _of_program(graph, *core_program(folder, core_of(prepared.plan.target), ()))
    return makers


def _title(name: str, options: Options) -> str:
    """Return who a leg is, as far as it is known before it is ready."""
    if name in RUNTIMES:
        return RUNTIMES[name].title
    cores = target(options.target).runs_on
    words = {GOLDEN: f"golden model, oracle {options.oracle}", HOST: "C on this computer", EMULATED: "C on "}
    return words[name] + (cores[0] if name == EMULATED else "")


def _of_program(graph: Graph, title: str, program: Program) -> tuple[str, Answer]:
    tensor = graph.tensors[graph.outputs[0]]

    def answer(x: Int8Array) -> Outputs:
        made = program(x.tobytes()).outputs
        values = np.frombuffer(made, tensor.type)
        if len(values) != len(x) * math.prod(tensor.shape):
            raise ToolError(f"{title}: {graph.name} wrote {len(made):,} B for {len(x)} images")
        return values.reshape(len(x), -1)

    return title, answer


def _run(title: str, answer: Answer, graph: Graph, images: LabelledImages, at_once: int, progress: Progress) -> Outputs:
    """Return the outputs for all images, some at a time."""
    outputs, total = [], len(images.x)
    progress(title, 0, total)
    for part in batches(total, at_once):
        outputs.append(answer(quantized(title, graph, images.x[part])))
        progress(title, part.stop, total)
    return np.concatenate(outputs)


def _compared(
    leg: EvaluatedLeg, graph: Graph, images: LabelledImages, outputs: Outputs, reference: Outputs
) -> EvaluatedLeg:
    """Return the leg with what its outputs have that the reference's have not."""
    wrong = outputs != reference
    differing = np.flatnonzero(wrong.any(axis=1))
    classes, expected = predictions(graph, outputs), predictions(graph, reference)
    differences = []
    for position in differing[:_DIFFERENCES]:
        value = int(wrong[position].argmax())
        differences.append(
            Difference(
                image=int(images.numbers[position]),
                label=int(images.y[position]),
                value=value,
                got=int(outputs[position, value]),
                expected=int(reference[position, value]),
                predicted=int(classes[position]),
                expected_class=int(expected[position]),
            )
        )
    return replace(
        leg,
        status="differs" if len(differing) else "equal",
        differing=len(differing),
        disagreeing=int((classes != expected).sum()),
        differences=tuple(differences),
    )
