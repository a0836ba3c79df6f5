"""`mnet train` and `mnet quantize`: run, and say what came out and what comes next."""

import sys
from dataclasses import asdict

from mnet import quantization, training
from mnet.commands.console import is_quiet, print_json
from mnet.progress import progress_bar
from mnet.quantization import QuantizationOptions
from mnet.runs import read_run
from mnet.training_task import TrainingOptions


def train(options: TrainingOptions, json_file: str | None) -> None:
    """Train and print where the run is and how good it is."""
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
    print(f"{result.model}: {result.test_accuracy:.2%}{balanced} of the test images of {result.description}, float")
    print(f"trained {len(result.history)} epochs in {result.seconds:,.0f} s; {result.folder}/README.md describes it")
    print(f"next: mnet quantize {result.folder} -o {result.folder.name}.tflite")


def _say(remark: str) -> None:
    print(remark, file=sys.stderr, flush=True)


def quantize(options: QuantizationOptions, json_file: str | None) -> None:
    """Quantize and print what was written."""
    result = quantization.quantize(options)
    if json_file:
        print_json(asdict(result) | {"path": str(result.path)}, json_file)
        return
    print(f"{result.path}: {result.file_bytes:,} B, calibrated by {result.calibration_images} training images")
    print(f"input  scale {result.input_scale:.9g}, zero_point {result.input_zero_point} (int8 = byte - 128)")
    print(f"output scale {result.output_scale:.9g}, zero_point {result.output_zero_point}")
    print(f"sha256 {result.sha256}")
    print(f"next: mnet codegen {result.path} --target cortex-m4 -o {result.path.stem}")
