"""`mnet ops`: which operators mnet reads, and which a model has."""

from dataclasses import asdict
from pathlib import Path

from mnet.commands.console import Column, print_json, print_table
from mnet.readers import READERS
from mnet.tflite import list_operators


def ops(model: Path | None, json_file: str | None) -> None:
    """Print the operators of `model`, or with None those that mnet reads."""
    if model is None:
        extents = {kind: reader.extent for kind, reader in READERS.items()}
        extents["DEQUANTIZE"] = "to float32 before an output, where it is cut off"
        extents |= {"any other": "where it only computes shapes, as integers"}
        if json_file:
            print_json(extents, json_file)
        else:
            print_table((Column("operator"), Column("as far as")), list(extents.items()))
        return
    rows, obstacles = list_operators(model)
    sentences = [obstacle.sentence for obstacle in obstacles]
    if json_file:
        found = {"model": model.name, "operators": [asdict(row) for row in rows]}
        print_json(found | {"obstacle": next(iter(sentences), ""), "obstacles": sentences}, json_file)
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
                "cut off" if row.is_edge else "yes" if row.is_read else "NO",
            )
            for row in rows
        ],
    )
    for sentence in sentences:
        print(f"\n{sentence}")
    if not sentences:
        print(f"\nmnet reads {model.name}: {len(rows)} operators.")


def _short(name: str) -> str:
    """Return the last part of a tensor's name: converters string all that was fused together."""
    return name.rsplit(";", 1)[-1][-48:]
