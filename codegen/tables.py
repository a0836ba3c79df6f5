"""The tables of the generated program: entries, row addresses and constants."""

import itertools
from collections.abc import Mapping, Sequence

from codegen.call import Call
from codegen.forms import FillKind
from codegen.kernel import Kernel
from codegen.layout import SUMS32, Storage
from codegen.plan import Entry
from codegen.selection import Stage


def _runs(phases: Sequence[int]) -> list[tuple[int, range]]:
    """Return each phase that occurs with its calls; more than once where they are not evenly spaced.

    >>> _runs([0, 1, 2, 1, 2, 5])
    [(0, range(0, 1)), (1, range(1, 4, 2)), (2, range(2, 5, 2)), (5, range(5, 6))]
    """
    runs: list[tuple[int, list[int]]] = []
    for number, phase in enumerate(phases):
        last = next((calls for known, calls in reversed(runs) if known == phase), None)
        if last is not None and (len(last) == 1 or number - last[-1] == last[-1] - last[-2]):
            last.append(number)
        else:
            runs.append((phase, [number]))
    return [
        (phase, range(calls[0], calls[-1] + 1, calls[1] - calls[0] if len(calls) > 1 else 1)) for phase, calls in runs
    ]


def symbols_of(name: str, stages: Sequence[Stage], calls: Sequence[Call], views: Sequence[object]) -> list[str]:
    """Return the name of each stage's C function; equal views of one kernel share it."""
    known: dict[tuple[str, object], str] = {}
    taken: set[str] = set()
    symbols = []
    for stage, call, view in zip(stages, calls, views, strict=True):
        key = (stage.kernel.family, view)
        if key not in known:
            source, target = call.inputs[0], call.output
            base = f"{name}_{stage.kernel.family}_{target.width}x{source.tensor.shape[2]}_{target.tensor.shape[2]}"
            variants = itertools.chain([base], (f"{base}_{number}" for number in itertools.count(2)))
            symbol = next(variant for variant in variants if variant not in taken)
            taken.add(symbol)
            known[key] = symbol
        symbols.append(known[key])
    return symbols


def phases_of(kernel: Kernel, call: Call, calls: int) -> list[int]:
    """Return for each call which constants it gets: in a ring, the slot that holds the top row of its window."""
    return [_phase(kernel, call, number) for number in range(calls)]


def _phase(kernel: Kernel, call: Call, number: int) -> int:
    source = call.inputs[0]
    if not kernel.ring_of_window or call.rows > 1 or source.whole:
        return kernel.phase(call, number)
    first, _ = kernel.window(call, 0, number)
    return (first + source.top) % source.slots


def _runs_of_words(storage: Storage, kind: FillKind) -> tuple[int, int, int]:
    """Return what a fill sets: words in a run, runs, words from run to run."""
    if kind is FillKind.SIDES:
        left, right = (columns * storage.pixel_bytes // 4 for columns in (storage.left, storage.right))
        if not left or not right:
            return left + right, 1, 0
        return left, 2, (storage.left + storage.width) * storage.pixel_bytes // 4
    words = storage.slot_bytes // 4
    if storage.layout.planar and not storage.apart:
        # every channel; above, the other slots get rows before anybody reads them
        rows = storage.top if kind is FillKind.ALL else 1
        return words * rows, storage.stored_channels, storage.channel_bytes // 4
    return (storage.buffer_bytes // 4 if kind is FillKind.ALL else words), 1, 0


class TableWriter:
    """Collects the tables of a plan."""

    def __init__(
        self,
        name: str,
        storages: Mapping[str, Storage],
        addresses: Mapping[str, Sequence[int]],
        makers: Mapping[str, str],
    ) -> None:
        self.name, self.storages, self.addresses = name, storages, addresses  # of each slot
        self.makers = makers  # tensor -> the stage that makes it, whose name is shorter
        self.entries: list[Entry] = []
        self.row_address: list[int] = []
        self.constants: dict[str, tuple[int, ...]] = {}
        self.first: dict[str, int] = {}
        for tensor, storage in storages.items():
            self.first[tensor] = len(self.row_address)
            self.row_address += [addresses[tensor][row % storage.slots] for row in range(storage.virtual_rows)]

    def fill(self, tensor: str, kind: FillKind, row: int) -> int:
        """Add the entry for a kind of fill; return its index. Padding rows above and below have one each."""
        storage = self.storages[tensor]
        above = kind is FillKind.ROW and row < storage.top
        suffix = {FillKind.ALL: "", FillKind.ROW: "_above" if above else "_below", FillKind.SIDES: "_beside"}[kind]
        label = f"fill_{identifier(self.makers.get(tensor, tensor))}{suffix}"
        value = 0 if storage.layout is SUMS32 else storage.padding_value
        bits = 8 * storage.layout.element_bytes
        pattern = sum((value & ((1 << bits) - 1)) << shift for shift in range(0, 32, bits))
        symbol = f"{self.name}_{label}"
        first_row = {FillKind.ALL: -1, FillKind.ROW: row, FillKind.SIDES: storage.top}[kind]
        output = self.first[tensor] + max(first_row, 0)
        if kind is FillKind.ALL:  # address of the buffer itself: slot 0, whichever row lies there
            output = len(self.row_address)
            self.row_address.append(self.addresses[tensor][0])
        if kind is FillKind.SIDES and storage.left == 0:
            end = storage.width * storage.pixel_bytes
            output = len(self.row_address)
            rows = range(storage.top, storage.top + storage.height)
            self.row_address += [self.addresses[tensor][row] + end for row in rows]
        self.constants[symbol] = (pattern, *_runs_of_words(storage, kind))
        self.entries.append(
            Entry(label, f"{self.name}_fill", symbol, 0, 0, output, 0, 0, 1, "", tensor, first_row, 1, 0, kind)
        )
        return len(self.entries) - 1

    def op(self, stage: Stage, call: Call, view: object, symbol: str) -> list[int]:
        """Add the entries of an op, one for each phase; return the entry of each call."""
        phases = phases_of(stage.kernel, call, stage.calls)
        entry_of = [0] * stage.calls
        labels: set[str] = set()
        for phase, numbers in _runs(phases):
            suffix = f"_phase{phase}" if len(set(phases)) > 1 else ""
            label = _unused(identifier(stage.name) + suffix, labels)
            array, first_word = f"{self.name}_{identifier(stage.name)}{suffix}", 0
            if stage.kernel.one_copy:
                array, first_word = f"{self.name}_{identifier(stage.name)}", phase
            words = stage.kernel.pack(call, view, 0 if stage.kernel.one_copy else phase)
            if words:
                self.constants[array] = words
            source, pointers, step = self._input(stage, call, numbers)
            output = self.first[stage.output] + call.output.top
            for number in numbers:
                entry_of[number] = len(self.entries)
            self.entries.append(
                Entry(
                    label=label,
                    symbol=symbol,
                    constants=array if words else "",
                    first_word=first_word,
                    input=source,
                    output=output + numbers[0] * stage.rows,
                    inputs=pointers,
                    input_step=step,
                    output_step=numbers.step * stage.rows,
                    op=stage.name,
                    tensor=stage.output,
                    first_row=numbers[0] * stage.rows,
                    row_step=numbers.step * stage.rows,
                    rows=stage.rows,
                )
            )
        return entry_of

    def _input(self, stage: Stage, call: Call, numbers: range) -> tuple[int, int, int]:
        """Return index, count and step of the input pointers, adding a list of their own where rows do not do."""
        kernel = stage.kernel
        if kernel.rows_read or len(stage.inputs) > 1:
            return self._listed(stage, call, numbers)
        pointers = kernel.pointers(call)
        first, _ = kernel.window(call, 0, numbers[0])
        storage = call.inputs[0]
        index = self.first[stage.inputs[0]]
        if kernel.ring_of_window and not storage.whole:
            return index, 1, 0  # the ring itself: virtual row 0 lies in slot 0
        step = kernel.window(call, 0, numbers[1])[0] - first if len(numbers) > 1 else 0
        return index + first + storage.top, pointers, step

    def _listed(self, stage: Stage, call: Call, numbers: range) -> tuple[int, int, int]:
        """Add the rows that each call reads, of one tensor after the other."""
        index = len(self.row_address)
        for number in numbers:
            for which, tensor in enumerate(stage.inputs):
                rows: Sequence[int] = (stage.kernel.window(call, which, number)[0],)
                if stage.kernel.rows_read:
                    rows = stage.kernel.rows_read(call, which, number)
                first = self.first[tensor] + self.storages[tensor].top
                self.row_address += [self.row_address[first + row] for row in rows]
        count = (len(self.row_address) - index) // len(numbers)
        return index, count, count


def _unused(label: str, used: set[str]) -> str:
    """Return `label`, numbered if it is in `used`, and note it there."""
    names = itertools.chain([label], (f"{label}_{number}" for number in itertools.count(2)))
    found = next(name for name in names if name not in used)
    used.add(found)
    return found


def identifier(text: str) -> str:
    """Return `text` with everything that C does not allow in a name replaced."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in text)
