"""Plan → {file name: text} through Jinja. Choices and arithmetic are made here; the templates only loop and print.

Writing is separate: see `write_folder`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from codegen.certificate import certificate
from codegen.dual_issue import reordered
from codegen.plan import TAKE, Plan, PlannedOp
from codegen.schedule_words import words_of
from codegen.stack_bound import stack_bound
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph, macs_of, weights_of
from mnet.resources import folder


@dataclass(frozen=True)
class Origin:
    """What the banner of the generated files says about where they come from. No dates, no paths."""

    command: str  # that makes the files again
    version: str  # of mnet
    labels: tuple[str, ...] = ()  # of the classes, for the header
    source: Graph | None = None  # as it stands in the file, to say what simplifying it saved


def _environment(target: Target) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["words"] = _words
    environment.filters["numbers"] = _numbers
    if target.dual_issue:
        environment.globals["reorder"] = reordered
    return environment


def _words(values: tuple[int, ...]) -> str:
    """Return 32-bit words in columns, the index of each line's first word beside it."""
    lines = []
    for start in range(0, len(values), 8):
        row = ", ".join(f"0x{value:08x}" for value in values[start : start + 8])
        lines.append(f"    /* {start:5} */ {row},")
    return "\n".join(lines)


def _numbers(values: list[Any], columns: int = 16) -> str:
    """Return numbers or names in columns."""
    lines = []
    for start in range(0, len(values), columns):
        lines.append("    " + ", ".join(str(value) for value in values[start : start + columns]) + ",")
    return "\n".join(lines)


def _narrowest(largest: int) -> str:
    """Return the smallest unsigned C type that holds `largest`."""
    for bits in (8, 16):
        if largest < 1 << bits:
            return f"uint{bits}_t"
    return "uint32_t"


def _work(graph: Graph, source: Graph | None) -> list[str]:
    """Return sentences on the work of an inference: what is left of it in the simplified graph."""
    if source is None:
        return []
    macs, file_macs = (sum(macs_of(g, op) for op in g.ops) for g in (graph, source))
    weights, file_weights = (sum(map(weights_of, g.ops)) for g in (graph, source))
    if (macs, weights) == (file_macs, file_weights):
        return [f"{macs:,} multiply-adds, {weights:,} weights, as in the file."]
    return [
        f"{macs:,} of the file's {file_macs:,} multiply-adds and {weights:,} of its {file_weights:,} weights are left:",
        "the others make channels that are constant, or that nothing reads.",
    ]


def _layer_table(graph: Graph, plan: Plan, source: Graph | None) -> list[str]:
    before = {op.name: macs_of(source, op) for op in source.ops} if source else {}
    made = {op.name: macs_of(graph, op) for op in graph.ops}
    saves = any(before.get(name, macs) != macs for name, macs in made.items())
    lines = []
    for op in plan.ops:
        shape = "x".join(map(str, op.call.output.tensor.shape))
        name = op.call.op.name
        macs = made[name] if not op.kernel.consumes_rows else 0
        less = f" of {before[name]:>9}" if macs and before.get(name, macs) != macs else ""
        work = f"{macs:>9}{less:{13 if saves else 0}} MACs"
        storage = plan.storage[op.output]
        rows = storage.kept
        lines.append(
            f"{op.name:<24} {shape:>12} {work}  {op.kernel.family:<16} "
            f"arena + {plan.buffer(op.output).offset:<6} {storage.buffer_bytes:>6} B  {storage.layout.name}, {rows}"
        )
    return lines


def _view(plan: Plan, origin: Origin) -> dict[str, Any]:
    """Return everything that the templates print."""
    graph = plan.graph
    source, target = graph.tensors[graph.input], graph.tensors[graph.output]
    output = plan.storage[graph.output]
    take = len(plan.entries)
    codes = [take if step == TAKE else step for step in plan.schedule]
    labels = [*(f"{entry.label.upper()}_STEP" for entry in plan.entries), "TAKE_ROW"]
    functions: dict[str, Any] = {op.symbol: op for op in plan.ops}
    image = next((buffer for buffer in plan.buffers if buffer.tensor == "image"), None)
    return {
        "name": graph.name,
        "NAME": graph.name.upper(),
        "origin": origin,
        "plan": plan,
        "mode": plan.input_mode,
        "source": source,
        "target": target,
        "input": plan.storage[graph.input],
        "input_bytes": source.shape[0] * source.shape[1] * source.shape[2],
        "input_row_bytes": source.shape[1] * source.shape[2],
        "output": output,
        "output_bytes": target.shape[0] * target.shape[1] * target.shape[2],
        "output_offset": plan.buffer(graph.output).offset,
        "image_offset": image.offset if image else 0,
        "order": words_of(plan),
        "layers": _layer_table(graph, plan, origin.source),
        "work": _work(graph, origin.source),
        "functions": functions,
        "entries": plan.entries,
        "pointers": max((entry.inputs for entry in plan.entries), default=1) + 1,
        "copies": _copies({entry.inputs for entry in plan.entries}),
        "fills": any(not entry.op for entry in plan.entries),
        "take": take,
        "codes": codes,
        "begun": _begun(graph, len(codes)),
        "step_labels": [*(labels[code] for code in codes), "END"],
        "row_words": [address // 4 for address in plan.row_address],
        "row_type": _narrowest(max(address // 4 for address in plan.row_address)),
        "step_type": _narrowest(take + 1),
        "index_type": _narrowest(len(plan.row_address)),
        "input_step_type": _narrowest(max((entry.input_step for entry in plan.entries), default=0)),
        "output_step_type": _narrowest(max((entry.output_step for entry in plan.entries), default=0)),
        "counter_type": _narrowest(max(plan.entry_calls, default=0)),
        "state_bytes": plan.state_bytes,
        "rows_bytes": plan.rows_bytes,
        "bound": certificate(plan),
        "arena_bytes": plan.arena_bytes,
        "stack": stack_bound(plan),
        "trace_bytes": _trace_bytes(plan),
    }


def _begun(graph: Graph, steps: int) -> int:
    """Return a 32-bit number of the model's own; its sums with positions up to `steps` neither wrap nor are small."""
    bits = steps.bit_length()
    return (1 << 31 | int(graph.model_hash[:8], 16) & 0x7FFFFFFF) >> bits << bits


def _copies(inputs: Collection[int]) -> list[tuple[int, int]]:
    """Return which row pointers are copied together (first, end), so that every entry has all of its inputs after one
    of them. There is always a first: a fill has no input, its output takes that place.

    >>> _copies({0, 1, 3, 10})
    [(0, 1), (1, 3), (3, 10)]
    """
    ends = sorted({max(count, 1) for count in inputs})
    return list(zip([0, *ends], ends, strict=False))


def _trace_bytes(plan: Plan) -> list[int]:
    """Return for each entry, and last for taking a row, the bytes from the traced pointer that hold its rows."""
    spans = [plan.storage[entry.tensor].span_bytes(entry.rows) if entry.rows else 0 for entry in plan.entries]
    return [*spans, plan.storage[plan.graph.input].span_bytes(1)]


def plan_json(plan: Plan) -> str:
    """Return the plan as JSON: what runs when, where rows lie, how to read a traced row."""
    document = {
        "name": plan.graph.name,
        "model_hash": plan.graph.model_hash,
        "target": plan.target.name,
        "oracle": plan.oracle.name,
        "input_mode": plan.input_mode,
        "arena_bytes": plan.arena_bytes,
        "live_bytes": plan.live_bytes,
        "steps": len(plan.schedule),
        "tensors": {
            name: {
                "shape": list(storage.tensor.shape),
                "layout": storage.layout.name,
                "offset": storage.offset,
                "slots": storage.slots,
                "slot_bytes": storage.slot_bytes,
                "padding": [storage.top, storage.bottom, storage.left, storage.right],
                "stored_channels": storage.stored_channels,
            }
            for name, storage in plan.storage.items()
        },
        "buffers": [
            {"tensor": b.tensor, "offset": b.offset, "bytes": b.size, "birth": b.birth, "death": b.death}
            for b in plan.buffers
        ],
        "entries": [
            {
                "label": entry.label,
                "function": entry.symbol,
                "op": entry.op,
                "tensor": entry.tensor,
                "first_row": entry.first_row,
                "row_step": entry.row_step,
                "rows": entry.rows,
            }
            for entry in plan.entries
        ],
        "schedule": list(plan.schedule),
    }
    return json.dumps(document, indent=1) + "\n"


def kernel_text(plan: Plan, op: PlannedOp, environment: jinja2.Environment | None = None) -> str:
    """Return the C function of one op, as it stands in NAME.c."""
    template = (environment or _environment(plan.target)).get_template(f"kernels/{op.kernel.template}")
    name = plan.graph.name
    return template.render(name=name, NAME=name.upper(), symbol=op.symbol, v=op.view)


def emit(plan: Plan, origin: Origin) -> dict[str, str]:
    """Return the generated files by their path inside the folder.

    The same plan and origin give the same bytes.
    """
    environment = _environment(plan.target)
    view = _view(plan, origin)
    name = plan.graph.name
    files = {
        f"{name}.h": "files/model.h.j2",
        f"{name}.c": "files/model.c.j2",
        f"{name}_weights.h": "files/weights.h.j2",
        f"{name}_weights.c": "files/weights.c.j2",
        f"{name}_instructions.h": "files/instructions.h.j2",
        "test/subject.h": "files/test_subject.h.j2",
        "test/test.c": "files/test.c.j2",
        "test/Makefile": "files/test_Makefile.j2",
        "Makefile": "files/Makefile.j2",
    }
    kernels = [kernel_text(plan, op, environment) for op in view["functions"].values()]
    view["kernels"] = kernels
    texts = {path: environment.get_template(source).render(view) for path, source in files.items()}
    texts[f"{name}.plan.json"] = plan_json(plan)
    return texts


def write_folder(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Write the files of a generated folder: all of them, or none.

    They are made in a temporary folder beside it, which then takes its place. An older generated folder is replaced;
    anything else at that place is left alone.

    Raises:
        PlanError: the place is taken by something else, or cannot be written.
    """
    path = path.absolute()
    try:
        if path.exists() and not path.is_dir():
            raise PlanError(f"{path} is a file: choose another folder with -o")
        if path.is_dir() and any(path.iterdir()) and not list(path.glob("*.plan.json")):
            raise PlanError(f"{path} holds other files than generated ones: choose an empty folder with -o")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise PlanError(f"{path} cannot be written ({error.strerror}): choose another folder with -o") from error
    try:
        for name, content in files.items():
            file = temporary / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise PlanError(f"{path} cannot be written ({error.strerror}): choose another folder with -o") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
