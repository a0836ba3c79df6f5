"""Read an int8 .tflite file into a Graph.

`mnet.flatbuffer` copies the file into plain values, `mnet.operands` checks what an operator takes and makes,
`mnet.readers` turns each operator into ops, and here these become a Graph. Each sentence raised says what to do.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from mnet.advice import advice_on
from mnet.dilation import fold_dilation
from mnet.edges import cut_edges, float_islands, maker_of, readers_of
from mnet.errors import ModelError
from mnet.flatbuffer import RawModel, RawOperator, RawTensor, parse, read_bytes
from mnet.graph import Graph, Op, check_graph, inputs_of
from mnet.layer_names import identifier, op_names, unique
from mnet.operands import Operands
from mnet.readers import READERS


def _shape_operators(model: RawModel) -> frozenset[int]:
    """Return the operators that only compute shapes: integers that do not reach an output of the model.

    The file has the results, as the shapes of activations. An operator that needs such a number as data (PAD does, for
    its amounts) refuses it, because it is not a constant.
    """
    wanted = set(model.outputs)
    found = set()
    for operator in reversed(model.operators):
        known = all(0 <= index < len(model.tensors) for index in operator.outputs)
        if known and operator.outputs and all(model.tensors[n].type in ("int32", "int64") for n in operator.outputs):
            if wanted.isdisjoint(operator.outputs):
                found.add(operator.index)
            else:
                wanted |= set(operator.inputs)
    return frozenset(found)


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way of reading a model."""

    operator: int  # its index; -1 = the model itself
    sentence: str  # what, where, what to do


class _Importer(Operands):
    """Turns a RawModel into a Graph, one operator at a time."""

    def __init__(self, model: RawModel, path: Path) -> None:
        super().__init__(model, path)
        self.shape_operators = _shape_operators(model)

    def run(self, name: str, model_hash: str) -> Graph:
        ops, obstacles = self.read()
        if obstacles:
            others = f" {len(obstacles) - 1} more obstacles: `mnet ops` lists them." if len(obstacles) > 1 else ""
            raise ModelError(f"{obstacles[0].sentence}{others}")
        model, by_name = self.model, {tensor.name: tensor for tensor in self.tensors.values()}
        sources, targets = (tuple(self.names[index] for index in ends) for ends in (model.inputs, model.outputs))
        try:
            check_graph(Graph(name, by_name, tuple(ops), sources, targets, model_hash))
        except ModelError as error:
            raise ModelError(f"{self.path} contradicts itself: {error}. Make or fetch it again.") from error
        needed = set(targets)
        for op in reversed(ops):  # what nobody reads is left out
            needed |= set(inputs_of(op)) if op.output in needed else set()
        kept = tuple(op for op in ops if op.output in needed)
        tensors = {tensor: by_name[tensor] for tensor in (*sources, *(op.output for op in kept))}
        return check_graph(Graph(name, tensors, kept, sources, targets, model_hash))

    def read(self) -> tuple[list[Op], list[Obstacle]]:
        """Return the ops of all operators that can be read, and what stands in the way of the others."""
        self.model, self.outside = cut_edges(self.model)
        self.model = fold_dilation(self.model)
        obstacles: list[Obstacle] = []
        for indices, end in ((self.model.inputs, "input"), (self.model.outputs, "output")):
            try:
                self._end(indices, end)
            except ModelError as error:
                obstacles.append(Obstacle(-1, str(error)))
        obstacles = list(dict.fromkeys(obstacles))  # inputs and outputs may be refused in the same words
        todo = [operator for operator in self.model.operators if not self.computes_a_shape(operator)]
        names = op_names((operator.kind, self._made_by(operator)) for operator in todo)
        ops: list[Op] = []
        used, is_int8 = set(names), not obstacles
        floats = float_islands(self.model, self.names)
        for operator, op_name in zip(todo, names, strict=True):
            self.where = self._place(operator)
            try:
                if operator.index in floats:
                    raise self.fail(floats[operator.index])
                if operator.kind not in READERS:
                    raise self.fail(f"not supported. {advice_on(operator.kind)}.")
                if not is_int8:
                    continue
                for op in READERS[operator.kind].read(self, operator, op_name):
                    ops.append(op if op.name == op_name else replace(op, name=unique(op.name, used)))
                    self.settle(op)
            except ModelError as error:
                if operator.index not in floats or floats[operator.index]:
                    obstacles.append(Obstacle(operator.index, str(error)))
        return ops, obstacles

    def _made_by(self, operator: RawOperator) -> str:
        index = operator.outputs[0] if operator.outputs else -1
        return self.names[index] if 0 <= index < len(self.names) else ""

    def _end(self, indices: tuple[int, ...], end: str) -> None:
        """Check the tensors that are the inputs or the outputs of the graph, and make activations of them."""
        if not indices:
            raise self.fail(f"has no {end}; the file is damaged.")
        for tensor in (self.raw(index) for index in indices):
            maker = maker_of(self.model, tensor.index) if end == "output" else None
            makes_indices = maker is not None and maker.kind == "ARG_MAX"
            if tensor.type != "int8" and not makes_indices:
                raise self.fail(self._about_end(tensor, end))
            if indices.count(tensor.index) > 1:
                raise self.fail(f"lists its {end} {tensor.name!r} twice: convert the model with each {end} once.")
            if end == "output" and tensor.index in self.model.inputs:
                raise self.fail(f"its output {tensor.name!r} is an input, which no operator makes: leave it out.")
            if makes_indices:  # its reader notes it
                continue
            self.activation(tensor)
            if tensor.index in self.outside:
                known = self.tensors[tensor.index]
                self.tensors[tensor.index] = replace(known, outside=self.outside[tensor.index])

    def _about_end(self, tensor: RawTensor, end: str) -> str:
        """Say why an input or output that is not int8 cannot be one of the graph."""
        beside = readers_of(self.model, tensor.index) if end == "input" else [maker_of(self.model, tensor.index)]
        kinds = {operator.kind for operator in self.model.operators}
        if not kinds & {"QUANTIZE", "DEQUANTIZE"}:
            if tensor.type == "uint8":
                return (
                    "this is a uint8 model, as TensorFlow 1 made them: quantize the float model again, to int8, with "
                    "TensorFlow 2 (mnet quantize)."
                )
            return f"this is a {tensor.type} model: quantize it to int8 first (mnet quantize)."
        between = sorted({operator.kind for operator in beside if operator} - {"QUANTIZE", "DEQUANTIZE"})
        where = f", and {between[0]} computes with it in {tensor.type}" if between else ""
        return (
            f"its {end} is {tensor.type}{where}: convert the model with inference_{end}_type = tf.int8 (mnet quantize "
            "does)."
        )

    def computes_a_shape(self, operator: RawOperator) -> bool:
        """Return whether `operator` only serves shapes: its result is in the file, as the shape of an activation."""
        return operator.index in self.shape_operators

    def _place(self, operator: RawOperator) -> str:
        name = f' "{self._made_by(operator)[:80]}"' if self._made_by(operator) else ""
        return f"{self.path}, operator {operator.index}{name} ({operator.kind})"


@dataclass(frozen=True)
class OperatorRow:
    """One operator of a file, as `list_operators` found it."""

    index: int
    kind: str
    output: str  # name of the tensor that it makes
    shape: tuple[int, ...]
    type: str  # of the tensor
    is_read: bool  # whether mnet can read it as it stands
    is_edge: bool  # whether it is cut off: it only converts an input or output


def list_operators(path: str | Path) -> tuple[tuple[OperatorRow, ...], tuple[Obstacle, ...]]:
    """Return the operators of a .tflite file, of any kind and type, and all that keeps mnet from reading it.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path)
    data = read_bytes(path)
    importer = _Importer(parse(data, path), path)
    operators = importer.model.operators
    obstacles = importer.read()[1]
    if not obstacles:
        try:
            parse_model(data, path)
        except ModelError as error:
            obstacles = [Obstacle(-1, str(error))]
    inner = {operator.index for operator in importer.model.operators}
    refused = {obstacle.operator for obstacle in obstacles} | set(float_islands(importer.model, importer.names))
    rows = []
    for operator in operators:
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
                operator.index not in refused,
                operator.index not in inner,
            )
        )
    return tuple(rows), tuple(obstacles)


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
