"""`mnet quantize`: one file, or all ways side by side; say what was written and what comes next."""

import contextlib
import math
from dataclasses import asdict

from mnet import comparison as comparing
from mnet import quantization
from mnet.commands.console import Column, is_quiet, print_json, print_table
from mnet.progress import progress_bar
from mnet.quantization import QuantizationOptions

_COMPARED = (
    Column("method"),
    Column("accuracy", True),
    Column("points", True),
    Column("won", True),
    Column("lost", True),
    Column("p", True),
    Column("same answer", True),
    Column("bytes", True),
)


def compare(options: QuantizationOptions, json_file: str | None) -> None:
    """Quantize in all ways, and print the table of them."""
    with contextlib.ExitStack() as bars:
        report = None if is_quiet() else bars.enter_context(progress_bar())
        comparison = comparing.compare(options, report)
    if json_file:
        print_json(comparison.as_json(), json_file)
        return
    print_table(
        _COMPARED,
        [
            (
                row.method,
                f"{row.accuracy:.2%}",
                f"{row.points:+.2f}",
                row.won,
                row.lost,
                f"{row.chance:.2f}",
                f"{row.same_answer:.2%}",
                row.file_bytes,
            )
            for row in comparison.rows
        ],
    )
    print(f"{comparison.data} ({comparison.rows[0].images:,}); int8: LiteRT reference kernels")
    print("won, lost: images right here and wrong in float, and the reverse; p: McNemar's exact test")


def quantize(options: QuantizationOptions, json_file: str | None) -> None:
    """Quantize and print what was written."""
    if options.qat and not is_quiet():
        with progress_bar() as report:
            result = quantization.quantize(options, report)
    else:
        result = quantization.quantize(options)
    if json_file:
        print_json(asdict(result) | {"path": str(result.path)}, json_file)
        return
    print(
        f"{result.path}: {result.file_bytes:,} B, {result.method}, calibrated by {result.calibration_images} "
        "training images"
    )
    print(f"input  scale {result.input_scale:.9g}, zero_point {result.input_zero_point} (int8 = byte - 128)")
    print(f"output scale {result.output_scale:.9g}, zero_point {result.output_zero_point}")
    for row in result.history:
        kept = (
            ""
            if math.isnan(row.validation_accuracy)
            else f", int8 {row.validation_accuracy:.2%} of the images kept back"
        )
        print(f"epoch {row.epoch}: loss {row.loss:.4f}{kept}")
    for name, near in (("trained network", result.near_float), ("fake-quantized one", result.near_fake_quantized)):
        if near is not None:
            print(
                f"against the {name}, {near.images:,} images: {near.same_answer:.2%} the same answer; logits "
                f"{near.mean_steps:.2f} steps away (root mean square), at most {near.largest_steps:.1f}"
            )
    print(f"sha256 {result.sha256}")
    print(f"next: mnet codegen {result.path} --target cortex-m4 -o {result.path.stem}")
