"""The arena over time as SVG: address against step, one rectangle for each row, one colour for each tensor.

What lies side by side and lives equally long is one rectangle, so that some hundred buffers stay readable.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from codegen.arrangement import IMAGE
from codegen.layout import SUMS32
from codegen.plan import Buffer, Entry, Plan, PlannedOp
from mnet.graph import numbered
from mnet.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Scale, axes, box, colour, document, escape, legend

_HEIGHT = 420  # of the plot
_THIN = 3  # pixels; thinner rows get no outline, which would hide them


@dataclass(frozen=True)
class RowLife:
    """Rows of a tensor that lie side by side and live from step `birth` to step `death`, inclusive."""

    tensor: str
    first: int  # row of the tensor; padding rows above it are negative
    rows: int
    slot: int  # of the first
    birth: int
    death: int


def memory_svg(plan: Plan) -> str:
    """Return the arena over time; hovering over a rectangle tells which rows it is."""
    steps = len(plan.schedule)
    colours = {name: colour(number) for number, name in enumerate((*plan.storage, IMAGE))}
    across = Scale(0, steps, LEFT, WIDTH - RIGHT)
    upwards = Scale(0, plan.arena_bytes, TOP + _HEIGHT, TOP)
    parts = axes(across, upwards, "step", "bytes")
    blocks = blocks_of(plan.buffers)
    for block in blocks:
        end = min(block.death + 1, steps)
        area = box(across(block.birth), upwards(block.offset + block.size), across(end), upwards(block.offset))
        title = f"{maker_of(plan, block.tensor)}: {block.size:,} B at {block.offset:,}"
        opacity = 0.8 if block.tensor == IMAGE else 0.25
        shown = f'fill="{colours[block.tensor]}" fill-opacity="{opacity}"'
        parts.append(f'<rect class="box" {area} {shown}><title>{escape(title)}</title></rect>')
    for life in row_lives(plan):
        for offset, size in _joined(_places(plan, life)):
            left, right, high = across(life.birth), across(life.death + 1), upwards(0) - upwards(size)
            area = box(left, upwards(offset + size), right, upwards(offset))
            kind = "row" if min(right - left, high) > _THIN else "box"
            parts.append(
                f'<rect class="{kind}" {area} fill="{colours[life.tensor]}">'
                f"<title>{escape(_title(plan, life, size))}</title></rect>"
            )
    parts += _names(plan, blocks, across, upwards)
    step, live = peak_of(plan)
    x, label = across(step + 0.5), f"peak: {live:,} B live in step {step:,}"
    anchor = "end" if x > WIDTH / 2 else "start"
    parts.append(f'<line class="peak" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{TOP + _HEIGHT}"/>')
    parts.append(f'<text x="{x:.1f}" y="{TOP - 12}" text-anchor="{anchor}">{label}</text>')
    state = box(LEFT, upwards(plan.arena_bytes), WIDTH - RIGHT, upwards(plan.rows_bytes))
    parts.append(
        f'<rect class="box" {state} fill="#999999" fill-opacity="0.5">'
        f"<title>state: {plan.state_bytes:,} B</title></rect>"
    )
    names = {name: colours[name] for name in (*plan.storage, *([IMAGE] if plan.input_mode == "arena" else []))}
    names_below, lines = legend(
        {maker_of(plan, name): colour for name, colour in names.items()}, TOP + _HEIGHT + BOTTOM
    )
    return document(f"The arena of {plan.graph.name} over time", TOP + _HEIGHT + BOTTOM + lines, [*parts, *names_below])


def blocks_of(buffers: Iterable[Buffer]) -> list[Buffer]:
    """Return the buffers with what lies side by side, is of one tensor and lives equally long as one.

    >>> blocks_of([Buffer("t", 4, 4, 0, 9, slot=1), Buffer("t", 0, 4, 0, 9, slot=0), Buffer("t", 8, 4, 1, 9, slot=2)])
    [Buffer(tensor='t', offset=0, size=8, birth=0, death=9, slot=None), \
Buffer(tensor='t', offset=8, size=4, birth=1, death=9, slot=None)]
    """
    spans: dict[tuple[str, int, int], list[tuple[int, int]]] = {}
    for buffer in buffers:
        spans.setdefault((buffer.tensor, buffer.birth, buffer.death), []).append((buffer.offset, buffer.size))
    return [
        Buffer(tensor, offset, size, birth, death)
        for (tensor, birth, death), places in spans.items()
        for offset, size in _joined(places)
    ]


def _joined(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (offset, bytes) of stretches of memory, with those that touch as one.

    >>> _joined([(8, 4), (0, 4), (4, 4), (20, 4)])
    [(0, 12), (20, 4)]
    """
    joined: list[tuple[int, int]] = []
    for offset, size in sorted(places):
        if joined and sum(joined[-1]) == offset:
            joined[-1] = (joined[-1][0], joined[-1][1] + size)
        else:
            joined.append((offset, size))
    return joined


def _names(plan: Plan, blocks: Iterable[Buffer], across: Scale, upwards: Scale) -> list[str]:
    """Return the names of the tensors that are large enough to carry them."""
    largest: dict[str, Buffer] = {}
    for buffer in blocks:
        known = largest.get(buffer.tensor)
        if known is None or _area(buffer, plan) > _area(known, plan):
            largest[buffer.tensor] = buffer
    parts = []
    for tensor, buffer in largest.items():
        name = maker_of(plan, tensor)
        width = across(min(buffer.death + 1, len(plan.schedule))) - across(buffer.birth)
        if width > 7 * len(name) + 8 and upwards(0) - upwards(buffer.size) > 13:
            place = f'x="{across(buffer.birth) + 4:.1f}" y="{upwards(buffer.offset + buffer.size) + 11:.1f}"'
            parts.append(f'<text class="name" {place}>{escape(name)}</text>')
    return parts


def _area(buffer: Buffer, plan: Plan) -> int:
    return buffer.size * (min(buffer.death + 1, len(plan.schedule)) - buffer.birth)


# --- what a plan tells ------------------------------------------------------------------------------------------------


def maker_of(plan: Plan, tensor: str) -> str:
    """Return the op that makes `tensor`, whose name is shorter, or which input it is."""
    makers = {op.output: op.name for op in plan.ops}
    inputs = zip(plan.graph.inputs, numbered("input", len(plan.graph.inputs)), strict=True)
    return {IMAGE: "image", **dict(inputs), **makers}[tensor]


def peak_of(plan: Plan) -> tuple[int, int]:
    """Return the first step at which most bytes are live, and how many."""
    changes = [0] * (len(plan.schedule) + 1)
    for buffer in plan.buffers:
        changes[buffer.birth] += buffer.size
        changes[min(buffer.death + 1, len(plan.schedule))] -= buffer.size
    live = list(accumulate(changes[:-1]))
    most = max(live)
    return live.index(most), most


def spans_of(buffers: Iterable[Buffer]) -> list[list[Buffer]]:
    """Return the spans of life of each buffer (a tensor, or one slot of it) together, by address and birth."""
    groups: dict[tuple[str, int | None], list[Buffer]] = {}
    for buffer in sorted(buffers, key=lambda b: (b.offset, b.birth)):
        groups.setdefault((buffer.tensor, buffer.slot), []).append(buffer)
    return list(groups.values())


def row_lives(plan: Plan) -> list[RowLife]:
    """Return from when to when each row must lie in memory, from being made to being read last: the plan replayed.

    Rows that lie side by side and live equally long are one.
    """
    replay = _Lives(plan)
    done, taken = [0] * len(plan.entries), [0] * len(plan.graph.inputs)
    for step, index in enumerate(plan.schedule):
        if index < 0:
            name = plan.graph.inputs[~index]
            replay.make(name, plan.storage[name].top + taken[~index], step)
            taken[~index] += 1
            continue
        entry, number = plan.entries[index], done[index]
        done[index] += 1
        if entry.op:
            replay.read(entry.op, step)
        for virtual in _made(plan, entry, number):
            replay.make(entry.tensor, virtual, step)
    return replay.finish(len(plan.schedule) - 1)


def _made(plan: Plan, entry: Entry, number: int) -> Sequence[int]:
    """Return the virtual rows that call `number` of an entry makes."""
    storage = plan.storage[entry.tensor]
    if storage.layout is SUMS32:
        return (0,)
    if entry.first_row < 0:  # padding above and beside
        below = range(storage.top + storage.height, storage.virtual_rows) if storage.filled_below else ()
        return (*range(storage.top), *below)
    first = storage.top + entry.first_row + number * entry.row_step
    if not entry.op:
        first -= storage.top  # a fill counts its padding rows as they lie
    return range(first, first + max(entry.rows, 1))


class _Lives:
    """Follows which row each slot holds, since when, and when it was last touched."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.ops: Mapping[str, PlannedOp] = {op.name: op for op in plan.ops}
        self.calls = dict.fromkeys(self.ops, 0)
        self.held: dict[tuple[str, int], RowLife] = {}  # tensor and slot
        self.ended: list[RowLife] = []

    def make(self, tensor: str, virtual: int, step: int) -> None:
        storage = self.plan.storage[tensor]
        key = tensor, virtual % storage.slots
        old = self.held.get(key)
        if old and old.first == virtual - storage.top:  # sums are added to
            self.held[key] = replace(old, death=step)
            return
        if old:
            self.ended.append(old)
        self.held[key] = RowLife(tensor, virtual - storage.top, 1, key[1], step, step)

    def read(self, name: str, step: int) -> None:
        op = self.ops[name]
        call, self.calls[name] = self.calls[name], self.calls[name] + 1
        for which, source in enumerate(op.inputs):
            storage = self.plan.storage[source]
            first, last = op.kernel.window(op.call, which, call)
            for row in range(max(first, -storage.top), min(last, storage.height + storage.bottom - 1) + 1):
                key = source, (row + storage.top) % storage.slots
                self.held[key] = replace(self.held[key], death=step)

    def finish(self, last_step: int) -> list[RowLife]:
        outputs = self.plan.graph.outputs
        stay = (replace(life, death=last_step) if life.tensor in outputs else life for life in self.held.values())
        merged: list[RowLife] = []
        for life in sorted([*self.ended, *stay], key=lambda r: (r.tensor, r.birth, r.death, r.slot)):
            before = merged[-1] if merged else None
            if before and replace(before, first=life.first - before.rows, slot=life.slot - before.rows) == replace(
                before, tensor=life.tensor, birth=life.birth, death=life.death
            ):
                merged[-1] = replace(before, rows=before.rows + life.rows)
            else:
                merged.append(life)
        return merged


def _places(plan: Plan, life: RowLife) -> list[tuple[int, int]]:
    """Return offset and bytes of the rows. Planar rows lie between each other: each gets its share of the buffer."""
    slots = plan.storage[life.tensor].slots
    whole = next((b for b in plan.buffers if b.tensor == life.tensor and b.slot is None), None)
    if whole:
        share = whole.size // slots
        return [(whole.offset + life.slot * share, life.rows * share)]
    wanted = range(life.slot, life.slot + life.rows)
    found = {b.slot: (b.offset, b.size) for b in plan.buffers if b.tensor == life.tensor and b.slot in wanted}
    return list(found.values())


def _title(plan: Plan, life: RowLife, size: int) -> str:
    last = life.first + life.rows - 1
    height = plan.storage[life.tensor].height
    word = "padding row" if life.first < 0 or last >= height else "row"
    rows = f"{word} {life.first}" if life.rows == 1 else f"{word}s {life.first} to {last}"
    return f"{maker_of(plan, life.tensor)}, {rows} ({life.tensor}): {size:,} B, steps {life.birth:,} to {life.death:,}"
