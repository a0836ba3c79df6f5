"""What a harness program reports of itself: records of bytes, and through the plan rows of tensors.

Generated C never holds a whole tensor. It calls `NAME_TRACE(entry, call, rows)` after each step, and the harness writes
down the span of memory that the step made; a row is unpacked by the very Storage that planned it.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from codegen.plan import Plan
from mnet.errors import ToolError
from mnet.graph import Int32Array

OUTPUT_RECORD = 0xFFFF  # entry of the records that hold a run's outputs, in order


@dataclass(frozen=True)
class TraceRecord:
    """The bytes that one call made, or with entry OUTPUT_RECORD an output of run number `call`."""

    entry: int
    call: int
    data: bytes


def read_trace(trace: bytes) -> Iterator[TraceRecord]:
    """Yield the records of a trace in the order of execution.

    Raises:
        ToolError: it ends in the middle of a record.
    """
    at = 0
    while at < len(trace):
        if at + 8 > len(trace):
            raise ToolError(f"the trace of {len(trace)} B ends in the middle of a record's head")
        entry, call, length = struct.unpack_from("<HHI", trace, at)
        data = trace[at + 8 : at + 8 + length]
        if len(data) < length:
            raise ToolError(f"the trace of {len(trace)} B ends in the middle of entry {entry}, call {call}")
        yield TraceRecord(entry, call, data)
        at += 8 + length


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a tensor, as a program made them."""

    number: int  # of the run, from 0
    tensor: str  # of the plan
    row: int  # the first of them
    values: Int32Array  # quantized, [rows, width, channels that the plan keeps]; int32, as a value out of int8 may come
    is_answer: bool = False  # the copy of an output that the caller gets, all rows of it


def entries_of(plan: Plan) -> tuple[tuple[str, int, int, int], ...]:
    """Return (tensor, first row, step from call to call, rows of a call) of every entry of a trace; inputs are last."""
    entries = [(entry.tensor, entry.first_row, entry.row_step, entry.rows) for entry in plan.entries]
    return (*entries, *((name, 0, 1, 1) for name in plan.graph.inputs))


def rows_of(plan: Plan, trace: bytes, runs: int) -> Iterator[Rows]:
    """Yield all rows of the trace of some runs, in the order in which they were made; the answers end each.

    Raises:
        ToolError: the trace is not complete: a row is missing, or a run is.
    """
    entries = entries_of(plan)
    graph = plan.graph
    made = {op.output for op in graph.ops} | set(graph.inputs)
    whole = {tensor: storage.height for tensor, storage in plan.storage.items() if tensor in made}
    seen = dict.fromkeys(whole, 0)
    number, answers = 0, 0
    for record in read_trace(trace):
        if record.entry == OUTPUT_RECORD:
            for tensor, rows in seen.items():
                if rows != whole[tensor]:
                    raise ToolError(f"the trace of {graph.name} holds {rows} rows of {tensor}")
            name = graph.outputs[answers]
            tensor_type, shape = graph.tensors[name].type, graph.tensors[name].shape
            values = np.frombuffer(record.data, tensor_type).astype(np.int32).reshape(shape)
            yield Rows(number, name, 0, values, is_answer=True)
            answers += 1
            if answers == len(graph.outputs):
                seen = dict.fromkeys(whole, 0)
                number, answers = number + 1, 0
            continue
        tensor, first_row, row_step, rows = entries[record.entry]
        row = first_row + record.call * row_step
        yield Rows(number, tensor, row, plan.storage[tensor].unpack(record.data, rows))
        seen[tensor] += rows
    if number != runs or answers:
        raise ToolError(f"the trace of {graph.name} holds {number} of {runs} runs")


def collect(plan: Plan, trace: bytes) -> tuple[dict[str, Int32Array], dict[str, Int32Array]]:
    """Return the tensors that a program made in one run, and its answers.

    Returns:
        Every tensor of the plan, whole: int32 [height, width, channels that the plan keeps]; and of each output, by the
        tensor's name, what the caller gets.

    Raises:
        ToolError: the trace is not complete.
    """
    parts: dict[str, list[Rows]] = {}
    answers: dict[str, Int32Array] = {}
    for rows in rows_of(plan, trace, 1):
        if rows.is_answer:
            answers[rows.tensor] = rows.values
        else:
            parts.setdefault(rows.tensor, []).append(rows)
    tensors = {
        tensor: np.concatenate([rows.values for rows in sorted(some, key=lambda rows: rows.row)])
        for tensor, some in parts.items()
    }
    return tensors, answers
