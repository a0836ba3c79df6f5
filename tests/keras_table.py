"""Figures of the networks of `keras_models`: RAM, flash, cycles, beside the arena of TFLM for the same file.

    python -m tests.keras_models build/models
    python -m tests.keras_table build/models

TFLM's arena is the head of its recording allocator: activations and kernels' scratch, without the tensors' structs,
which are larger on a 64-bit computer than on a board. MNet's RAM is the arena and the worst-case stack.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from mnet.commands.console import Column, print_table
from mnet.errors import MnetError
from mnet.pipeline import Options, prepare
from mnet.profile import profile_model

_HEAD = re.compile(r"Arena allocation head (\d+) bytes")
_MEASURE = """
import sys
from tflite_micro import runtime
config = runtime.InterpreterConfig.kAllocationRecording
runtime.Interpreter.from_file(sys.argv[1], arena_size=1 << 26, intrepreter_config=config).print_allocations()
"""


def tflm_head_bytes(model: Path) -> int | None:
    """Return what TFLM keeps activations and scratch in, or None where it refuses the model or is not installed."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, str(model)], capture_output=True, text=True)
    found = _HEAD.search(done.stdout + done.stderr)
    return int(found[1]) if found and done.returncode == 0 else None


def row(model: Path, options: Options) -> tuple[object, ...]:
    """Return the figures of one model, or why there are none."""
    try:
        found = profile_model(prepare(model, options))
    except MnetError as error:
        return (model.stem, str(error).split(": ", 1)[-1][:60], "", "", "", "", "")
    tflm = tflm_head_bytes(model)
    ram = found.arena_bytes + found.worst_stack_bytes
    share = f"{ram / tflm:.0%}" if tflm else ""
    flash = found.code_bytes + found.constant_bytes
    return (model.stem, found.macs, found.cycles, flash, ram, tflm or "refused", share)


def rows(folder: Path, options: Options) -> Iterator[tuple[object, ...]]:
    """Yield the figures of each .tflite file of a folder."""
    for model in sorted(folder.glob("*.tflite")):
        yield row(model, options)


def main(arguments: list[str]) -> None:
    """Print the table for a folder; the second argument is the input mode, `const` where there is none."""
    mode = arguments[1] if len(arguments) > 1 else "const"
    titles = ("model", "multiply-adds", "cycles", "flash, B", "RAM, B", "TFLM's arena, B", "share")
    columns = [Column(title, number > 0) for number, title in enumerate(titles)]
    print_table(columns, list(rows(Path(arguments[0]), Options("cortex-m4", input_mode=mode))))


if __name__ == "__main__":
    main(sys.argv[1:])
