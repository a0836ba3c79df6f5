"""The command line: click declarations, a few lines each. What commands do is in `mnet.commands` and its neighbours.

Nothing heavy is imported before a command runs, so that `mnet --help` answers at once.
"""

from pathlib import Path
from typing import Any

import click

from mnet import __version__
from mnet.errors import MnetError
from mnet.option_types import (
    budget_options,
    code_options,
    count_or_all,
    height_width,
    input_option,
    json_option,
    layer_option,
    model_argument,
    model_path,
    oracle_option,
    simplify_option,
    target_option,
)

STAGES = ("graph", "simplified", "plan", "memory", "c", "asm")


class _Sentence(click.ClickException):
    """A finished sentence for the user."""

    exit_code = 2


class _Group(click.Group):
    """Prints the one sentence of an MnetError; anything else is our bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MnetError as error:
            raise _Sentence(str(error)) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a user meets them, not of the alphabet."""
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mnet")
def main() -> None:
    """Train a small MobileNet, quantize it, generate plain C for Cortex-M, and prove every bit.

    \b
    mnet demo                                                        all of it on bundled images, in minutes
    mnet search --ram 16k --cycles 4M                                the largest network that fits
    mnet train --data sample --recipe sample --out run               model.keras
    mnet quantize run -o model.tflite                                int8
    mnet codegen model.tflite --target cortex-m4 -o model            C sources
    mnet verify model.tflite --target cortex-m4                      LiteRT == C here == C on the emulated core
    mnet report model.tflite --target cortex-m4 -o model.html        figures, memory and proof on a page

    Exit codes: 0 well, 1 bits differ, 2 bad input (one sentence says what), 3 something could not be run.
    """


@main.command()
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("mnet-demo"),
    show_default=True,
    help="Folder of everything that is made.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=None, help="Fewer are quicker and worse.")
@json_option
def demo(out: Path, epochs: int | None, json_file: str | None) -> None:  # fmt: skip
    """All of it on bundled images: train, quantize, generate, prove, profile."""
    from mnet.demo import run

    raise SystemExit(run(out, epochs, json_file))


@main.command()
@json_option
def doctor(json_file: str | None) -> None:
    """Say what is installed, what is missing, and how to get it."""
    from mnet.doctor import run

    raise SystemExit(run(json_file))


@main.command()
@click.argument("name", required=False)
@click.option("-o", "--out", type=click.Path(path_type=Path), metavar="DIR", help="Copy the model's files there.")
@json_option
def zoo(name: str | None, out: Path | None, json_file: str | None) -> None:
    """The models that come with mnet."""
    from mnet.commands.zoo import zoo

    zoo(name, out, json_file)


@main.command()
@budget_options
@click.option("--data", metavar="D", help="As for train: size, channels and classes are those of its images.")
@click.option(
    "--size", callback=height_width, metavar="S", help="Of the images: 32, or 48x64; by default the data's, or 32."
)
@click.option("--channels", type=click.Choice(["1", "3"]), help="Grey or colour; by default the data's, or 3.")
@click.option("--classes", type=click.IntRange(min=2), default=10, show_default=True, help="Without --data.")
@click.option("--blocks", metavar="B", help="Only see whether this shape fits, written as for train.")
@click.option("--head", type=click.Choice(["softmax", "argmax"]), default="softmax", show_default=True)
@json_option
def search(
    blocks: str | None, channels: str | None, head: str, budget: Any, json_file: str | None, **values: Any
) -> None:
    """The largest network that a budget allows, untrained."""
    from mnet.architecture import Head, shape_of
    from mnet.commands.search import search

    shape = shape_of(blocks) if blocks else None
    search(budget, shape, Head(head), json_file, channels=int(channels) if channels else None, **values)


@main.command()
@click.option(
    "--data",
    default="sample",
    show_default=True,
    metavar="D",
    help="cifar10, cifar10-jpeg, fashion-mnist, sample, a folder of pictures CLASS/*.jpg, or an .npz file.",
)
@click.option(
    "--from",
    "source",
    metavar="RUN|MODEL.keras|zoo:NAME",
    help="Start from this trained network: its shape and its weights.",
)
@click.option("--teacher", metavar="RUN|zoo:NAME", help="Learn also from the answers of this better network.")
@click.option(
    "--prune", type=float, metavar="SHARE", help="With --from: keep at most this share of its multiply-adds, 0.5."
)
@click.option(
    "--sparsity", type=float, default=0.0, metavar="L", help="Draw channels to 0, for a later --prune: 1e-4 to 1e-3."
)
@click.option("--alpha", type=float, help="Multiplies all widths; by default what the recipe says.")
@click.option("--blocks", metavar="B", help="Widths, the stem's first, s2 for a stride: 16s2,24,48s2,48.")
@click.option(
    "--depthwise", type=click.Choice(["linear", "relu6"]), default="linear", help="What follows it, with --blocks."
)
@click.option("--size", callback=height_width, metavar="S", help="Scale the images: 32, or 48x64 (height x width).")
@click.option(
    "--stem-stride", type=click.Choice(["1", "2"]), help="Of the first convolution, in place of that of the recipe."
)
@click.option(
    "--head",
    type=click.Choice(["softmax", "argmax"]),
    default="softmax",
    show_default=True,
    help="Probabilities, or logits whose largest is the answer.",
)
@budget_options
@click.option(
    "--recipe",
    help="tiny, small, large, default, sample, seed, or with --from transfer, polish; see mnet/recipes.py.",
)
@click.option(
    "--no-flip", "flip", is_flag=True, flag_value=False, default=True, help="Mirror no image: for text, arrows."
)
@click.option("--epochs", type=int, help="By default what the recipe says.")
@click.option("--minutes", type=float, help="In place of epochs: end then, however busy the machine is.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all random numbers.")
@click.option("--threads", type=int, help="Of TensorFlow; the weights depend on it.")
@click.option("--train-images", type=int, help="Use only so many, as many of each class.")
@click.option("--validation-images", type=int, help="Kept back from the training images; by default a tenth.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Folder of the run; by default runs/DATA-RECIPE in the user's cache folder of mnet.",
)
@click.option("--resume", is_flag=True, help="Go on with the run that was interrupted.")
@click.option("--overwrite", is_flag=True, help="Replace a run at the same place.")
@json_option
def train(
    blocks: str | None,
    depthwise: str,
    stem_stride: str | None,
    head: str,
    budget: Any,
    prune: float | None,
    json_file: str | None,
    **values: Any,
) -> None:
    """Train a MobileNet: model.keras, history, model card.

    With a budget (--ram, --flash, --cycles) it is the largest that fits; --blocks then only has to fit. --from with a
    budget, --prune or --blocks keeps the most important channels of a network.
    """
    from mnet.architecture import Head, shape_of
    from mnet.commands.train import train
    from mnet.runs import runs_folder
    from mnet.training_task import TrainingOptions

    values["shape"] = shape_of(blocks, linear_depthwise=depthwise == "linear") if blocks else None
    values["recipe"] = values["recipe"] or ("transfer" if values["source"] else "default")
    values["out"] = values["out"] or runs_folder() / f"{Path(values['data']).stem}-{values['recipe']}"
    values["stem_stride"] = int(stem_stride) if stem_stride else None
    train(TrainingOptions(head=Head(head), **values), budget, prune, json_file)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="RUN|MODEL.keras")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="MODEL.tflite|DIR")
@click.option("--data", metavar="D", help="Calibrate by these training images; by default the run's own.")
@click.option(
    "--normalization", type=click.Choice(["x/255", "x/128 - 1"]), help="Of the input; by default what the run says."
)
@click.option("--images", type=int, default=500, show_default=True, help="To calibrate by.")
@click.option("--seed", type=int, default=0, show_default=True, help="Chooses them.")
@click.option(
    "--improve/--plain",
    default=None,
    help="The next three together, --calibration mse --equalize --bias-correction: the default for a network of `mnet "
    "train`. Plain: as TensorFlow's converter does it.",
)
@click.option(
    "--calibration",
    type=click.Choice(["minmax", "percentile", "mse"]),
    help="What an activation's range covers: all values, all but 0.01 % at each end, or the least squared error.",
)
@click.option("--equalize", is_flag=True, help="Scale depthwise channels to use their common range; exact in float.")
@click.option("--bias-correction", is_flag=True, help="Move each channel's mean back to what it is in float.")
@click.option("--qat", is_flag=True, help="Quantization-aware training: from --improve on, a few epochs in int8.")
@click.option("--epochs", type=int, help="Of --qat; by default 4.")
@click.option("--threads", type=int, help="Of TensorFlow; the weights of --qat depend on it.")
@click.option("--resume", is_flag=True, help="Go on with the --qat that was interrupted.")
@click.option(
    "--compare", is_flag=True, help="Make PTQ, --improve and --qat in a folder -o, and a table of all test images."
)
@json_option
def quantize(
    normalization: str | None, calibration: str | None, compare: bool, json_file: str | None, **values: Any
) -> None:
    """Make an int8 .tflite of a trained model."""
    from mnet.calibration import Calibration
    from mnet.commands import quantize as commands
    from mnet.quantization import QuantizationOptions
    from mnet.recipes import Normalization

    chosen = Normalization(normalization) if normalization else None
    ranges = Calibration(calibration) if calibration else None
    run = commands.compare if compare else commands.quantize
    run(QuantizationOptions(normalization=chosen, calibration=ranges, **values), json_file)


@main.command("eval")
@click.argument("model", callback=model_path, metavar="MODEL.tflite|zoo:NAME|RUN|MODEL.keras")
@click.option("--data", metavar="D", help="As for train, or an .npz with x and y; by default the run's own.")
@click.option("--split", type=click.Choice(["test", "train"]), default="test", show_default=True)
@click.option("--images", type=click.IntRange(min=1), help="Only so many, as many of each class; by default all.")
@click.option(
    "--on",
    metavar="A,B",
    help="Legs, of golden, host, emulated, litert, tflm, litert-optimised, xnnpack; "
    "by default the oracle, golden, host and emulated. Of a .tflite.",
)
@click.option(
    "--emulated",
    callback=count_or_all,
    default="200",
    show_default=True,
    metavar="N|all",
    help="Images for the emulated core, as many of each class.",
)
@click.option("--target", default="cortex-m4", show_default=True, metavar="T", help="Of the C, as for codegen.")
@oracle_option
@click.option(
    "--normalization", type=click.Choice(["x/255", "x/128 - 1"]), help="Of a float input; by default what the run says."
)
@click.option("--allow-missing", is_flag=True, help="Exit with 0 even if a tool was missing and a leg was not run.")
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.svg|png", help="Draw the confusion matrix.")
@json_option
def evaluate(model: Path, target: str, oracle: str, normalization: str | None, **values: Any) -> None:
    """Accuracy, confusion matrix, and equal outputs everywhere.

    \b
    An int8 .tflite on LiteRT, the golden model, C here and C on an emulated core; a trained model in Keras.
    """
    from mnet.commands.evaluate import evaluate
    from mnet.pipeline import Options
    from mnet.recipes import Normalization

    chosen = Normalization(normalization) if normalization else None
    raise SystemExit(evaluate(model, options=Options(target, oracle), normalization=chosen, **values))


@main.command()
@model_argument
@target_option
@oracle_option
@input_option
@simplify_option
@json_option
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw cycles and flash against RAM.")
def plan(
    model: Path, target: str, oracle: str, input_mode: str, simplify: bool, json_file: str | None, svg: Path | None
) -> None:  # fmt: skip
    """What a RAM budget costs: arena against cycles and flash."""
    from mnet.commands.plan import plan
    from mnet.pipeline import Options

    plan(model, Options(target, oracle, input_mode, simplify=simplify), json_file, svg)


@main.command()
@model_argument
@code_options
@click.option("--labels", metavar="A,B,C", help="Names of the classes, for the header.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR")
@json_option
def codegen(model: Path, options: Any, labels: str | None, out: Path, json_file: str | None) -> None:
    """Generate C99 sources and their test."""
    from mnet.commands.generate import generate

    names = tuple(label.strip() for label in labels.split(",")) if labels else ()
    generate(model, options, names, out, json_file)


@main.command()
@model_argument
@code_options
@click.option(
    "--inputs", type=click.IntRange(min=1), default=20, show_default=True, help="For LiteRT and this computer."
)
@click.option("--emulated", type=click.IntRange(min=1), default=2, show_default=True, help="Of them, for each core.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the inputs.")
@layer_option
@click.option("--board", metavar="B", help="Also within a board's flash and RAM: microbit, ... (firmware/README.md).")
@click.option("--allow-missing", is_flag=True, help="Exit with 0 even if a tool was missing and a leg was not run.")
@json_option
def verify(model: Path, options: Any, json_file: str | None, **values: Any) -> None:
    """Prove the bits: LiteRT, C here, C on emulated cores."""
    from mnet.commands.verify import verify

    raise SystemExit(verify(model, options, json_file=json_file, **values))


@main.command()
@model_argument
@click.option(
    "--between",
    nargs=2,
    required=True,
    metavar="A B",
    help="Two of golden-litert, golden-tflm, litert, litert-optimised, xnnpack, tflm, host, emulated.",
)
@click.option(
    "--input", "input_file", type=click.Path(path_type=Path), metavar="FILE", help="int8 .npy or .bin, or a picture."
)
@click.option("--seed", type=int, help="Of a random input; by default 0.")
@target_option
@oracle_option
@simplify_option
@layer_option
@json_option
@click.option("--picture", type=click.Path(path_type=Path), metavar="FILE.svg|png", help="Draw where they differ.")
def trace(model: Path, target: str, oracle: str, simplify: bool, **values: Any) -> None:
    """Where two runtimes part: layer by layer, and why.

    host is the generated C on this computer, emulated the same on the first core of --target; both round as --oracle.
    """
    from mnet.commands.trace import trace
    from mnet.pipeline import Options

    raise SystemExit(trace(model, options=Options(target, oracle, simplify=simplify), **values))


@main.command()
@model_argument
@code_options
@json_option
@click.option(
    "--wait-states",
    type=click.IntRange(0, 15),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the flash; adds a column of cycles. An STM32L4R5 at 120 MHz has 5.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="OLD.json",
    help="Show what changed since; exit with 1 where cycles grew by more than 1 %.",
)
@click.option("--ablation", is_flag=True, help="Only a table of what each idea of the code generator brings.")
def profile(
    model: Path, options: Any, json_file: str | None, wait_states: int, compare: Path | None, ablation: bool
) -> None:  # fmt: skip
    """Instructions, cycles, flash, arena and stack."""
    from mnet.commands.profile import ablate, profile

    if ablation:
        ablate(model, options, json_file)
    else:
        raise SystemExit(profile(model, options, json_file, wait_states, compare))


@main.command()
@model_argument
@code_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, metavar="REPORT.html")
@click.option(
    "--inputs", type=click.IntRange(min=1), default=8, show_default=True, help="For LiteRT and this computer."
)
@click.option("--emulated", type=click.IntRange(min=1), default=2, show_default=True, help="Of them, for each core.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the inputs.")
@click.option(
    "--clock",
    "clocks",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="MHZ",
    help="Give milliseconds for it; may be repeated. By default what is common for the core.",
)
@click.option(
    "--wait-states",
    type=click.IntRange(0, 15),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the flash; adds cycles and milliseconds.",
)
@click.option("--allow-missing", is_flag=True, help="Exit with 0 even if a tool was missing; the page says which.")
def report(model: Path, options: Any, **values: Any) -> None:  # fmt: skip
    """Profile, memory, proof, integration: one page of HTML."""
    from mnet.commands.report import report

    raise SystemExit(report(model, options, **values))


@main.command()
@model_argument
@code_options
@click.option("--stage", type=click.Choice(STAGES), default="graph", show_default=True)
@layer_option
@click.option("--svg", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw the arena over time.")
def show(model: Path, options: Any, stage: str, layer: str | None, svg: Path | None) -> None:
    """Print a stage on the way from model to machine code."""
    from mnet.commands.console import write_text
    from mnet.picture import memory_svg
    from mnet.pipeline import prepare
    from mnet.show import show

    prepared = prepare(model, options)
    click.echo(show(prepared, stage, layer))
    if svg is not None:
        write_text(svg, memory_svg(prepared.plan))


@main.command()
@click.option("--alpha", type=float, default=0.25, show_default=True)
@click.option(
    "--size", callback=height_width, default="224", show_default=True, metavar="S", help="Or 48x64: height x width."
)
@click.option("--classes", type=int, default=1000, show_default=True)
@click.option("--channels", type=int, default=3, show_default=True)
@click.option("--stem-stride", type=click.Choice(["1", "2"]), default="2", show_default=True)
@click.option("--layers", is_flag=True, help="The table of layers.")
@json_option
@click.pass_context
def cost(context: click.Context, /, layers: bool, json_file: str | None, stem_stride: str, **values: Any) -> None:
    """Multiply-adds and parameters of a network."""
    from mnet.commands.cost import classic, one

    given = [context.get_parameter_source(name) for name in ("stem_stride", *values)]
    if all(source is click.core.ParameterSource.DEFAULT for source in given) and not layers:
        classic(json_file)
    else:
        one(layers, json_file, stem_stride=int(stem_stride), **values)


@main.command()
@click.argument("model", type=click.Path(path_type=Path), metavar="[MODEL.tflite]", required=False)
@json_option
def ops(model: Path | None, json_file: str | None) -> None:
    """Which operators are read; which a model has."""
    from mnet.commands.ops import ops

    ops(model, json_file)


if __name__ == "__main__":
    main()
