"""`mnet zoo`: which models come with mnet, the card of one, a copy of its files."""

import shutil
from dataclasses import asdict
from pathlib import Path

from mnet.commands.console import Column, print_json, print_table
from mnet.errors import MnetError
from mnet.runs import CARD_FILE
from mnet.zoo import PREFIX, entry, names
from mnet.zoo.table import zoo_rows


def zoo(name: str | None, out: Path | None, json_file: str | None) -> None:
    """Print the table of all models, or the card of one; copy its files where `out` says."""
    if name is None and out is not None:
        raise MnetError(f"-o {out}: say which model to copy; `mnet zoo` lists them.")
    entries = [entry(each) for each in ([name] if name else names())]
    if out is not None:
        _copy(entries[0].folder, out)
        print(f"{out / entries[0].tflite.name}: the int8 model; {out / CARD_FILE} describes it")
    elif json_file:
        print_json([asdict(each) for each in entries], json_file)
    elif name:
        print((entries[0].folder / CARD_FILE).read_text(), end="")
    else:
        headings, rows = zoo_rows(entries)
        print_table([Column(heading, place > 1) for place, heading in enumerate(headings)], rows)
        print("\nfloat, int8: all test images; M4: cycles modelled, rows pushed. `mnet zoo NAME` prints a card, and")
        print(
            f"{PREFIX}NAME stands for a model wherever one is asked for: mnet codegen {PREFIX}{entries[0].name} -o net"
        )


def _copy(folder: Path, out: Path) -> None:
    if out.exists():
        raise MnetError(f"{out} exists already; choose another folder with -o.")
    partial = out.with_name(f".{out.name}.tmp")
    try:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise MnetError(f"{out} cannot be written: {error.strerror or error}.") from None
