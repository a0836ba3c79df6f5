"""`mnet ops`: which operators mnet reads, and which a model has."""

from dataclasses import asdict
from pathlib import Path

from mnet.commands.console import Column, print_json, print_table
from mnet.errors import ModelError
from mnet.readers import READERS
from mnet.tflite import SHAPE_OPERATORS, list_operators, read_model


def ops(model: Path | None, json_file: str | None) -> None:
    """Print the operators of `model`, or with None those that mnet reads."""
    if model is None:
        extents = {kind: reader.extent for kind, reader in READERS.items()}
        extents |= {kind: "where it only serves a RESHAPE" for kind in SHAPE_OPERATORS if kind not in extents}
        if json_file:
            print_json(extents, json_file)
        else:
            print_table((Column("operator"), Column("as far as")), list(extents.items()))
        return
    rows = list_operators(model)
    try:
        read_model(model)
        obstacle = ""
    except ModelError as error:
        obstacle = str(error)
    if json_file:
        print_json({"model": model.name, "operators": [asdict(row) for row in rows], "obstacle": obstacle}, json_file)
        return
    columns = (Column("#", True), Column("operator"), Column("makes"), Column("shape"), Column("type"), Column("read"))
    print_table(
        columns,
        [
            (
                row.index,
                row.kind,
                _short(row.output),
                "x".join(map(str, row.shape)),
                row.type,
                "yes" if row.is_read else "NO",
            )
            for row in rows
        ],
    )
    print(f"\n{obstacle}" if obstacle else f"\nmnet reads {model.name}: {len(rows)} operators.")


def _short(name: str) -> str:
    """Return the last part of a tensor's name: converters string all that was fused together."""
    return name.rsplit(";", 1)[-1][-48:]
