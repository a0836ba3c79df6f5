"""`mnet train`: run, and say what came out and what comes next."""

import sys
from dataclasses import asdict

from mnet import training
from mnet.budget import Budget
from mnet.commands.console import is_quiet, print_json
from mnet.commands.search import pruned, within
from mnet.progress import progress_bar
from mnet.runs import read_run
from mnet.training_task import TrainingOptions


def train(options: TrainingOptions, budget: Budget | None, keep: float | None, json_file: str | None) -> None:
    """Train and print where the run is and how good it is; with a budget, choose the network first."""
    if keep is not None:
        options = pruned(options, keep)
        print(f"{options.source} without its least channels: {options.shape}", file=sys.stderr)
    if budget is not None:
        options = within(options, budget)
        size = f" at {options.size[0]}x{options.size[1]}" if options.size else ""
        print(f"{options.shape}{size}: {options.fit}", file=sys.stderr)
    if is_quiet():
        result = training.train(options, say=_say)
    else:
        with progress_bar() as report:
            result = training.train(options, report, _say)
    if json_file:
        run = read_run(result.folder)
        print_json(run | {"folder": str(result.folder), "history": [asdict(row) for row in result.history]}, json_file)
        return
    balanced = ""
    if f"{result.balanced_accuracy:.2%}" != f"{result.test_accuracy:.2%}":
        balanced = f" ({result.balanced_accuracy:.2%} where each class counts as much as any other)"
    tested = f"{result.test_images:,} test images of {result.description}"
    print(f"{result.model}: {result.test_accuracy:.2%}{balanced} of the {tested}, float")
    print(f"trained {len(result.history)} epochs in {result.seconds:,.0f} s; {result.folder}/README.md describes it")
    print(f"next: mnet quantize {result.folder} -o {result.folder.name}.tflite")
    if options.fit is not None:
        name = result.folder.name
        print(f"then: mnet codegen {name}.tflite {options.fit.codegen_options} -o {name}-c")


def _say(remark: str) -> None:
    print(remark, file=sys.stderr, flush=True)
