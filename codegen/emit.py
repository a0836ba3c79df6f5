"""Plan → {file name: text} through Jinja. Choices and arithmetic are made here; the templates only loop and print.

Writing is separate: see `write_folder`.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from codegen.arrangement import image_offsets
from codegen.certificate import certificate
from codegen.dual_issue import reordered
from codegen.layout import Storage
from codegen.plan import Plan, PlannedOp
from codegen.schedule_words import turns_of, words_of
from codegen.stack_bound import stack_bound
from codegen.targets import Target
from mnet.errors import PlanError
from mnet.graph import Graph, Tensor, macs_of, numbered, weights_of
from mnet.resources import folder


@dataclass(frozen=True)
class Origin:
    """What the banner of the generated files says about where they come from. No dates, no paths."""

    command: str  # that makes the files again
    version: str  # of mnet
    labels: tuple[str, ...] = ()  # of the classes, for the header
    source: Graph | None = None  # as it stands in the file, to say what simplifying it saved


_COLUMNS = 100  # of a line of strings
_VALUE_BYTES = {"int8": 1, "int32": 4}


@dataclass(frozen=True)
class Port:
    """An input or an output of the network, as the templates print it."""

    name: str  # of the parameter in C: input, or input_0 where there are several; macros have it in capitals
    suffix: str  # "", or _0: what tells functions for one port from those for another
    tensor: Tensor
    storage: Storage
    place: int  # of an input: index in row_address of its row 0; of an output: byte where its buffer begins
    image: int  # of an input: byte of the arena where the caller puts it, where it lies there
    at: int  # byte where a harness has it, that keeps all inputs, or all outputs, one behind the other

    @property
    def bytes(self) -> int:
        """Return what the caller gives or gets."""
        return math.prod(self.tensor.shape) * self.value_bytes

    @property
    def value_bytes(self) -> int:
        """Return the bytes of a value."""
        return _VALUE_BYTES[self.tensor.type]

    @property
    def c_type(self) -> str:
        """Return the C type of a value."""
        return f"{self.tensor.type}_t"

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row of that."""
        return self.bytes // self.tensor.shape[0]

    @property
    def conversion(self) -> str:
        """Return how the caller converts where the file's own input or output has another type; see `conversion`."""
        return conversion(self.tensor, self.name.startswith("input"))

    @property
    def first(self) -> int:
        """Return the elements of the buffer before the first value: padding that readers of an output want."""
        storage = self.storage
        return (storage.top * storage.slot_bytes + storage.left * storage.pixel_bytes) // storage.layout.element_bytes


def _places(graph: Graph, tensors: Sequence[str]) -> list[int]:
    """Return bytes where tensors may lie one behind the other, each aligned as its type is."""
    places, end = [], 0
    for tensor in (graph.tensors[name] for name in tensors):
        size = _VALUE_BYTES[tensor.type]
        places.append(-(-end // size) * size)
        end = places[-1] + size * math.prod(tensor.shape)
    return places


def _inputs(plan: Plan) -> list[Port]:
    graph, images = plan.graph, image_offsets(plan.graph)
    names = numbered("input", len(graph.inputs))
    places = _places(graph, graph.inputs)
    return [
        Port(name, name[5:], graph.tensors[tensor], plan.storage[tensor], row, images[tensor], at)
        for name, tensor, row, at in zip(names, graph.inputs, plan.take_rows, places, strict=True)
    ]


def _outputs(plan: Plan) -> list[Port]:
    graph = plan.graph
    names = numbered("output", len(graph.outputs))
    ports = []
    for name, tensor, at in zip(names, graph.outputs, _places(graph, graph.outputs), strict=True):
        storage = plan.storage[tensor]
        assert not storage.layout.planar, tensor
        ports.append(Port(name, name[6:], graph.tensors[tensor], storage, plan.buffer(tensor).offset, 0, at))
    return ports


def conversion(tensor: Tensor, is_input: bool) -> str:
    """Return how a caller converts an input or output that has another type in the file, or "" where it is int8.

    >>> conversion(Tensor("x", (1, 1, 3), 0.5, 0, outside="uint8"), True)
    'quantized = byte - 128'
    """
    if tensor.outside == "uint8":
        return "quantized = byte - 128" if is_input else "byte = quantized + 128"
    if tensor.outside == "int64":
        return "the same numbers as int32"
    if tensor.outside == "float32":
        if is_input:
            return "quantized = round(real / scale) + zero_point, within -128 to 127"
        return "real = scale * (quantized - zero_point)"
    return ""


def _bad(name: str, ports: Sequence[Port]) -> str:
    """Return the C condition that the arena or one of these pointers is bad."""
    others = (f" || {port.name} == NULL" for port in ports[1:])
    return f"{name}_bad(arena, {ports[0].name})" + "".join(others)


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
    environment.filters["comment"] = _comment
    environment.filters["strings"] = _strings
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


def _comment(text: str) -> str:
    """Return a name from a model as a C comment may hold it: printable ASCII that neither ends nor begins one."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in text)
    return printable.replace("*/", "* /").replace("/*", "/ *")


def _strings(texts: Sequence[str]) -> str:
    """Return C string literals with commas between them, on lines of a macro where they are many."""
    lines, line = [], ""
    for number, text in enumerate(texts, 1):
        piece = c_string(text) + ("," if number < len(texts) else "")
        if line and len(line) + len(piece) > _COLUMNS:
            lines.append(line)
            line = ""
        line += f" {piece}" if line else piece
    return " \\\n    ".join([*lines, line])


def c_string(text: str) -> str:
    r"""Return a C string literal, UTF-8.

    What cannot be printed is bytes in octal, always three digits, so that no digit behind them counts. Of two question
    marks one is escaped: a third character might make a trigraph of them.

    >>> print(c_string('6" \\ ??!'), c_string("a\nb\u2028"), c_string("Käse"))
    "6\" \\ ?\?!" "a\012b\342\200\250" "Käse"
    """
    made = ""
    for character in text:
        if character in '"\\' or (character == "?" and made.endswith("?")):
            made += "\\" + character
        elif character.isprintable():
            made += character
        else:
            made += "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
    return f'"{made}"'


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
    inputs, outputs = _inputs(plan), _outputs(plan)
    take = len(plan.entries)
    codes = [step if step >= 0 else take + ~step for step in plan.schedule]
    takes = [f"TAKE_ROW{port.suffix}" for port in inputs]
    labels = [*(f"{entry.label.upper()}_STEP" for entry in plan.entries), *takes]
    functions: dict[str, Any] = {op.symbol: op for op in plan.ops}
    return {
        "name": graph.name,
        "NAME": graph.name.upper(),
        "origin": origin,
        "plan": plan,
        "mode": plan.input_mode,
        "inputs": inputs,
        "outputs": outputs,
        "input_parameters": ", ".join(f"const int8_t *{port.name}" for port in inputs),
        "output_parameters": ", ".join(f"{port.c_type} *{port.name}" for port in outputs),
        "input_arguments": ", ".join(port.name for port in inputs),
        "output_arguments": ", ".join(port.name for port in outputs),
        "bad_inputs": _bad(graph.name, inputs),
        "bad_outputs": _bad(graph.name, outputs),
        "copy": "copy_output" if len(outputs) == 1 else "copy_outputs",
        "turns": turns_of(plan),
        "takes": takes,
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
        "step_type": _narrowest(take + len(inputs)),
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
    """Return for each entry, and last for taking a row of each input, the bytes that hold its rows when traced."""
    spans = [plan.storage[entry.tensor].span_bytes(entry.rows) if entry.rows else 0 for entry in plan.entries]
    return spans + [plan.storage[name].span_bytes(1) for name in plan.graph.inputs]


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
