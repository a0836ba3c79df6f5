"""What pruning brings on the bundled sample: accuracy against cycles, beside networks trained at that size at once.

    python -m tests.pruning_table build/pruning

The network is tiny's shape at 28x28, trained with --sparsity; each share of its multiply-adds is pruned, trained on,
quantized and planned for a Cortex-M4. Accuracies are those of the int8 model on the 1,000 test images; "at once"
has the same widths and as many epochs as pruned network and its parent together. About four minutes of one core.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from codegen.planner import Search
from mnet.commands.console import Column, print_table
from mnet.commands.search import pruned
from mnet.cost import cost
from mnet.evaluation import evaluate_float, evaluate_int8
from mnet.pipeline import Options, requested
from mnet.quantization import QuantizationOptions, quantize
from mnet.recipes import recipe
from mnet.sources import load
from mnet.training import train
from mnet.training_task import TrainingOptions, task_of

SHARES = (0.75, 0.5, 0.35)
EPOCHS, MORE_EPOCHS = 40, 15
SPARSITY = 1e-3

Row = tuple[object, ...]


def trained(folder: Path, name: str, options: TrainingOptions) -> Path:
    """Return the folder of a training, which may be there from a run of this command that was broken off."""
    out = folder / name
    if not out.exists():
        train(replace(options, out=out))
    return out


def figures(run: Path) -> tuple[int, float, float]:
    """Return cycles as planned for a Cortex-M4, and the accuracies of a run: int8, float."""
    data = load("sample", size=None, channels=None)
    path = run.parent / f"{run.name}.tflite"
    quantize(QuantizationOptions(run, path))
    _, request = requested(path, Options("cortex-m4"))
    cycles = Search(request).decide("balanced", None).solution.cycles
    int8 = evaluate_int8(path, data.x_test, data.y_test).fraction
    return cycles, int8, evaluate_float(run, data.x_test, data.y_test).fraction


def rows(folder: Path, seed: int) -> Iterator[Row]:
    """Yield the lines of the table: the network as it is, sparsely trained, then pruned."""
    base = TrainingOptions("sample", folder, shape=recipe("tiny").shape, recipe="sample", seed=seed, threads=1)
    own = cost(task_of(base).architecture).multiply_adds
    for name, sparsity in (("plain", 0.0), ("sparse", SPARSITY)):
        run = trained(folder, name, replace(base, epochs=EPOCHS, sparsity=sparsity))
        yield _row(f"as it is, --sparsity {sparsity:g}", str(base.shape), own, run)
    source = replace(base, shape=None, source=str(folder / "sparse"))
    for share in SHARES:
        chosen = pruned(source, share)
        number = cost(task_of(chosen).architecture).multiply_adds
        run = trained(folder, f"pruned-{share}", replace(chosen, epochs=MORE_EPOCHS))
        yield _row(f"--prune {share}, {MORE_EPOCHS} more epochs", str(chosen.shape), number, run)
        run = trained(folder, f"at-once-{share}", replace(base, shape=chosen.shape, epochs=EPOCHS + MORE_EPOCHS))
        yield _row("the same widths, at once", "", number, run)


def _row(what: str, shape: str, multiply_adds: int, run: Path) -> Row:
    cycles, int8, real = figures(run)
    return what, shape, multiply_adds, cycles, f"{int8:.1%}", f"{real:.1%}"


def main(arguments: list[str]) -> None:
    """Print the table; a second argument is the seed."""
    folder = Path(arguments[0])
    folder.mkdir(parents=True, exist_ok=True)
    titles = ("", "widths", "multiply-adds", "M4 cycles", "int8", "float")
    columns = [Column(title, number > 1) for number, title in enumerate(titles)]
    print_table(columns, list(rows(folder, int(arguments[1]) if len(arguments) > 1 else 0)))


if __name__ == "__main__":
    main(sys.argv[1:])
