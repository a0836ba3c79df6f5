"""Tables, progress bars and JSON: how every command prints. Progress goes to stderr, results to stdout."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnet.errors import MnetError

_PLAIN_WIDTH = 200  # where there is no terminal whose width counts


@dataclass(frozen=True)
class Column:
    """The heading of a column; numbers stand at its right edge."""

    title: str
    right: bool = False


def is_quiet() -> bool:
    """Return whether progress is not to be drawn: no terminal, or CI."""
    return bool(os.environ.get("CI")) or not sys.stderr.isatty()


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Print rows under headings; a row of one empty cell is a rule."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:
        print(title)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.title, justify="right" if column.right else "left", no_wrap=column.right)
    for row in rows:
        if len(row) == 1 and not row[0]:
            table.add_section()
        else:
            table.add_row(*(Text(_cell(value)) for value in row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
    with console.capture() as captured:
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)


def print_json(value: Any, where: str) -> None:
    """Write `value` to the file `where`, all of it or nothing, or to stdout for "-".

    Raises:
        MnetError: the file cannot be written.
    """
    text = json.dumps(value, indent=1) + "\n"
    if where == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(where), text)


def write_text(path: Path, text: str) -> None:
    """Write a file, all of it or nothing.

    Raises:
        MnetError: the file cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, all of it or nothing.

    Raises:
        MnetError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise MnetError(f"{path} cannot be written: {error.strerror}.") from None


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (what, done, total) that draws a bar for each `what`; silent without a terminal."""
    if is_quiet():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report
