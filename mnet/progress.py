"""How far a training has come, and the bar that shows it."""

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mnet.runs import EpochRow


@dataclass(frozen=True)
class Progress:
    """Where a training stands after a step."""

    epoch: int  # from 1
    epochs: int  # as many as will fit, where minutes are the limit
    step: int  # within the epoch, from 1
    steps: int
    loss: float  # mean of this epoch so far
    train_accuracy: float
    images_per_second: float  # of this epoch so far
    history: tuple[EpochRow, ...]  # finished epochs

    @property
    def fraction(self) -> float:
        """How much of all work is done."""
        return ((self.epoch - 1) * self.steps + self.step) / (self.epochs * self.steps)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[Progress], None]]:
    """Yield a `report` for `train` that draws a bar; without a terminal it prints one line in ten epochs."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _print_some_epochs
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("train", total=1.0)

        def report(progress: Progress) -> None:
            validation = (
                f"  validation {progress.history[-1].validation_accuracy:6.2%}"
                if progress.history and not math.isnan(progress.history[-1].validation_accuracy)
                else ""
            )
            pace = f"  {progress.images_per_second:,.0f} images/s"
            text = f"epoch {progress.epoch}/{progress.epochs}  loss {progress.loss:.3f}{validation}{pace}"
            bar.update(task, completed=progress.fraction, description=text)

        yield report


def _print_some_epochs(progress: Progress) -> None:
    if progress.step == progress.steps and (progress.epoch % max(1, progress.epochs // 10) == 0):
        print(
            f"epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}, "
            f"accuracy on augmented training images {progress.train_accuracy:.2%}",
            file=sys.stderr,
        )
