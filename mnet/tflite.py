"""Read an int8 .tflite file into a Graph.

`mnet.flatbuffer` copies the file into plain values, `mnet.operands` checks what an operator takes and makes,
`mnet.readers` turns each operator into ops, and here these become a Graph. Each sentence raised says what to do.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from mnet.errors import ModelError
from mnet.flatbuffer import RawOperator, parse, read_bytes
from mnet.graph import Graph, Op, check_graph, inputs_of
from mnet.layer_names import identifier, op_names, unique
from mnet.operands import Operands
from mnet.readers import READERS

SHAPE_OPERATORS = ("SHAPE", "STRIDED_SLICE", "PACK")  # what computes the shape of a RESHAPE; the file has the result


class _Importer(Operands):
    """Turns a RawModel into a Graph, one operator at a time."""

    def run(self, name: str, model_hash: str) -> Graph:
        model = self.model
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise self.fail(f"has {len(model.inputs)} inputs and {len(model.outputs)} outputs; mnet reads one of each.")
        ends = [self.raw(index) for index in (model.inputs[0], model.outputs[0])]
        kinds = {operator.kind for operator in model.operators}
        for tensor, end in zip(ends, ("input", "output"), strict=True):
            if tensor.type == "float32" and kinds & {"QUANTIZE", "DEQUANTIZE"}:
                raise self.fail(
                    f"its {end} is float32: convert the model with inference_{end}_type = tf.int8 (mnet quantize does)."
                )
            if tensor.type != "int8":
                raise self.fail(f"this is a {tensor.type} model: quantize it to int8 first (mnet quantize).")
            self.activation(tensor)
        todo = [operator for operator in model.operators if not self.computes_a_shape(operator)]
        for operator in todo:
            self.where = self._place(operator)
            if operator.kind not in READERS:
                raise self.fail(
                    "not supported. End the model before it, or replace it; `mnet ops` lists what is supported."
                )
            self.output(operator)
        names = op_names((o.kind, self.names[o.outputs[0]]) for o in todo)
        ops: list[Op] = []
        used = set(names)
        for operator, op_name in zip(todo, names, strict=True):
            self.where = self._place(operator)
            for op in READERS[operator.kind].read(self, operator, op_name):
                ops.append(op if op.name == op_name else replace(op, name=unique(op.name, used)))
        by_name = {tensor.name: tensor for tensor in self.tensors.values()}
        source, target = self.names[model.inputs[0]], self.names[model.outputs[0]]
        try:
            check_graph(Graph(name, by_name, tuple(ops), source, target, model_hash))
        except ModelError as error:
            raise ModelError(f"{self.path} contradicts itself: {error}. Make or fetch it again.") from error
        needed = {target}
        for op in reversed(ops):  # what nobody reads is left out
            needed |= set(inputs_of(op)) if op.output in needed else set()
        kept = tuple(op for op in ops if op.output in needed)
        tensors = {tensor: by_name[tensor] for tensor in (source, *(op.output for op in kept))}
        return check_graph(Graph(name, tensors, kept, source, target, model_hash))

    def computes_a_shape(self, operator: RawOperator) -> bool:
        """Return whether `operator` only serves a RESHAPE: its result is known, the output's shape is in the file."""
        return operator.kind in SHAPE_OPERATORS and all(
            0 <= index < len(self.model.tensors) and self.model.tensors[index].type in ("int32", "int64")
            for index in operator.outputs
        )

    def _place(self, operator: RawOperator) -> str:
        index = operator.outputs[0] if operator.outputs else -1
        name = f' "{self.names[index][:80]}"' if 0 <= index < len(self.names) else ""
        return f"{self.path}, operator {operator.index}{name} ({operator.kind})"


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a file, as `list_operators` found it."""

    index: int
    kind: str
    output: str  # name of the tensor that it makes
    shape: tuple[int, ...]
    type: str  # of the tensor
    is_read: bool  # whether mnet reads this kind of operator, in an int8 model


def list_operators(path: str | Path) -> tuple[OperatorRow, ...]:
    """Return the operators of a .tflite file, of any kind and type.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path)
    importer = _Importer(parse(read_bytes(path), path), path)
    rows = []
    for operator in importer.model.operators:
        index = operator.outputs[0] if operator.outputs else -1
        is_known = 0 <= index < len(importer.model.tensors)
        tensor = importer.model.tensors[index] if is_known else None
        rows.append(
            OperatorRow(
                operator.index,
                operator.kind,
                importer.names[index] if is_known else "",
                tensor.shape if tensor else (),
                tensor.type if tensor else "",
                operator.kind in READERS or importer.computes_a_shape(operator),
            )
        )
    return tuple(rows)


def read_model(path: str | Path) -> Graph:
    """Read an int8 .tflite file.

    Args:
        path: the file. Its stem, made an identifier, names the graph.

    Returns:
        The graph, checked. Each Tensor's `index` is the one that LiteRT's `get_tensor` takes.

    Raises:
        ModelError: the file is missing, damaged, not int8, or has an operator that mnet does not read.
    """
    path = Path(path)
    return parse_model(read_bytes(path), path)


def parse_model(data: bytes, path: str | Path) -> Graph:
    """Read the bytes of an int8 .tflite file; `path` is for its name and for messages. See `read_model`."""
    path = Path(path)
    importer = _Importer(parse(data, path), path)
    return importer.run(identifier(path.stem, "model"), hashlib.sha256(data).hexdigest()[:16])
