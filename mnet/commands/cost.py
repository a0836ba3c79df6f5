"""`mnet cost`: multiply-adds and parameters, computed from the layers."""

from dataclasses import asdict
from typing import Any

from mnet.architecture import mobilenet
from mnet.commands.console import Column, print_json, print_table
from mnet.cost import alpha_table, cost, layer_table, resolution_table


def classic(json_file: str | None) -> None:
    """Print the two classic tables: four widths at 224x224, four resolutions at alpha = 1."""
    by_alpha, by_size = alpha_table(), resolution_table()
    if json_file:
        print_json({"alpha": [asdict(r) for r in by_alpha], "resolution": [asdict(r) for r in by_size]}, json_file)
        return
    rest = (Column("multiply-adds", True), Column("parameters", True), Column("ImageNet, published", True))
    for title, rows, heading in (
        ("Width, at 224x224x3 and 1,000 classes", by_alpha, "alpha"),
        ("\nResolution, at alpha = 1", by_size, "size"),
    ):
        print_table(
            (Column(heading, True), *rest),
            [
                (
                    f"{row.alpha:.2f}" if heading == "alpha" else f"{row.size}",
                    row.cost.multiply_adds,
                    row.cost.parameters,
                    f"{row.published_accuracy_percent:.1f} %",
                )
                for row in rows
            ],
            title,
        )
    print("\nAccuracy: Howard et al., MobileNets, 2017, tables 6 and 7. All else is computed here.")


def one(layers: bool, json_file: str | None, **shape: Any) -> None:
    """Print the cost of one network: `alpha`, `size`, `channels`, `classes`, `stem_stride`."""
    architecture = mobilenet(**shape)
    total, table = cost(architecture), layer_table(architecture)
    if json_file:
        print_json(asdict(total) | ({"layers": [asdict(row) for row in table]} if layers else {}), json_file)
        return
    if layers:
        columns = (Column("layer"), Column("kind"), Column("output"), Column("parameters", True))
        print_table(
            (*columns, Column("multiply-adds", True)),
            [
                (row.name, row.kind, "x".join(map(str, row.output_shape)), row.parameters, row.multiply_adds)
                for row in table
            ],
        )
        print()
    print(f"multiply-adds  {total.multiply_adds:>13,}")
    print(f"parameters     {total.parameters:>13,}, of which trained {total.trainable:,}")
    print(f"int8 weights   {total.weights:>13,} B")
