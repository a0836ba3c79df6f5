"""The zoo as tables: of `mnet zoo`, of its README, of the cards."""

from collections.abc import Sequence

from mnet.zoo import PREFIX, Entry

Table = tuple[Sequence[str], Sequence[Sequence[str]]]  # headings, rows


def zoo_rows(entries: Sequence[Entry]) -> Table:
    """Return a row for each model: what it knows and what it takes with the image pushed row by row."""
    headings = (
        "model",
        "data",
        "multiply-adds",
        "float",
        "int8",
        "M4 cycles",
        "flash",
        "arena + stack",
        "M0+: instructions, RAM",
    )
    rows = []
    for each in entries:
        pushed, smallest = each.pushed, each.boards[2]
        rows.append(
            (
                each.name,
                f"{each.data}, {'x'.join(map(str, each.input_shape))}",
                f"{each.multiply_adds / 1e6:.2f} M",
                f"{each.test.float_accuracy:.2%}",
                f"{each.test.int8_accuracy:.2%}",
                f"{pushed.cycles:,}",
                f"{pushed.flash_bytes:,} B",
                f"{pushed.arena_bytes:,} + {pushed.worst_stack_bytes:,} B",
                f"{smallest.instructions / 1e6:.2f} M, {smallest.arena_bytes:,} + {smallest.worst_stack_bytes:,} B",
            )
        )
    return headings, rows


def board_rows(found: Entry) -> Table:
    """Return a row for each board that a model was measured on."""
    headings = ("`mnet profile` with", "instructions", "cycles, modelled", "flash", "arena", "stack, at most")
    return headings, [
        (
            board.options,
            f"{board.instructions:,}",
            f"{board.cycles:,}",
            f"{board.flash_bytes:,} B",
            f"{board.arena_bytes:,} B",
            f"{board.worst_stack_bytes:,} B",
        )
        for board in found.boards
    ]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def index(entries: Sequence[Entry]) -> str:
    """Return README.md of the zoo."""
    first = f"{PREFIX}{entries[0].name}"
    originals = ", ".join(
        f"{each.name} {each.originals.float_accuracy:.2%} / {each.originals.int8_accuracy:.2%}"
        for each in entries
        if each.originals
    )
    return _INDEX.format(
        table="\n".join(markdown(*zoo_rows(entries))),
        compiler=entries[0].pushed.compiler,
        options=",\n".join(f"`{each.pushed.options}` for {each.name}" for each in entries),
        originals=originals,
        name=entries[0].name,
        first=first,
    )


_INDEX = """# The zoo: models trained here, ready to use

{table}

float and int8 are accuracies on all test images (10,000 each), int8 by LiteRT's reference kernels. Cycles, flash (code
and weights) and RAM are those of `mnet profile zoo:NAME OPTIONS`
({compiler}), with these OPTIONS:
{options}.
The last column has `--target cortex-m0plus --input rows --optimize ram`. CIFAR-10 (JPEG) is a JPEG copy of CIFAR-10; on
the first 1,017 test images with their original pixels the models reach, float / int8: {originals}.

```
mnet zoo                # this table
mnet zoo {name}         # one model's card
mnet codegen {first} --target cortex-m4 -o net     # wherever a MODEL.tflite is asked for
mnet train --data my_photos --from {first}         # goes on with pictures of your own
```

Each folder holds the int8 model, the float model (`model.keras`) to train on from, `run.json` (every setting),
`history.csv`, its curve, `figures.json` and a card; `start-*` are of the training that it went on from.
`python -m mnet.zoo.make` measures and writes all of it.
"""
