"""A .tflite file of a few operators, in the shapes that a file has: for readers of what no op of a Graph can say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema

from tests.writer import packed

Operand = tuple[int, ...] | str | npt.NDArray[Any]  # the shape of an input, "output_1" by its number, or a constant

_TYPES = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64}


class _File:
    """Collects the tensors and operators of a file."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as objects

        self.objects = objects
        self.model, self.subgraph = objects.ModelT(), objects.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.subgraph]
        self.model.buffers, self.model.operatorCodes = [objects.BufferT()], []
        self.subgraph.tensors, self.subgraph.inputs, self.subgraph.operators = [], [], []
        self.numbers: dict[str, int] = {}  # of tensors that operators make

    def tensor(self, shape: Sequence[int], dtype: str, data: bytes = b"", zero_point: int = 3) -> int:
        """Add a tensor; sizes of -1 are left open, and 1 in its shape."""
        made, index = self.objects.TensorT(), len(self.subgraph.tensors)
        made.name, made.type = f"tensor_{index}", _TYPES[dtype]
        made.shape = [max(size, 1) for size in shape]
        if min(shape, default=0) < 0:
            made.shapeSignature = list(shape)
        if dtype == "int8":
            is_weights = bool(data) and len(shape) > 1
            made.quantization = self.objects.QuantizationParametersT()
            made.quantization.scale = np.array([0.01 if is_weights else 0.25], np.float32)
            made.quantization.zeroPoint = np.array([0 if is_weights else zero_point], np.int64)
        if data:
            buffer = self.objects.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            made.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        self.subgraph.tensors.append(made)
        return index

    def operand(self, operand: Operand) -> int:
        """Return the index of what an operator takes."""
        if isinstance(operand, str):
            return self.numbers[operand]
        if isinstance(operand, np.ndarray):
            return self.tensor(operand.shape, operand.dtype.name, operand.tobytes())
        index = self.tensor(operand, "int8")
        self.subgraph.inputs.append(index)
        return index

    def add(
        self,
        kind: str,
        operands: Sequence[Operand],
        outputs: Sequence[tuple[int, ...]],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an operator."""
        operator, code = self.objects.OperatorT(), self.objects.OperatorCodeT()
        operator.inputs = [self.operand(operand) for operand in operands]
        operator.outputs = [self.tensor(shape, "int8") for shape in outputs]
        for index in operator.outputs:
            self.numbers[f"output_{len(self.numbers)}"] = index
        if options is not None:
            table = kind.title().replace("_", "").replace("Nd", "ND")
            operator.builtinOptionsType = getattr(self.objects.BuiltinOptions, f"{table}Options")
            operator.builtinOptions = getattr(self.objects, f"{table}OptionsT")()
            for field, value in options.items():
                setattr(operator.builtinOptions, field, value)
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        operator.opcodeIndex = len(self.model.operatorCodes)
        self.model.operatorCodes.append(code)
        self.subgraph.operators.append(operator)


def operators_file(*steps: Sequence[Any]) -> bytes:
    """Return a file of operators; the outputs of the last are its outputs.

    Args:
        steps: of each operator its name in the schema, its operands, the shapes of its outputs, and options by name.
    """
    made = _File()
    for step in steps:
        made.add(*step)
    made.subgraph.outputs = made.subgraph.operators[-1].outputs
    return packed(made.model)


def one_operator(
    kind: str,
    operands: Sequence[Operand],
    outputs: Sequence[tuple[int, ...]],
    options: Mapping[str, Any] | None = None,
) -> bytes:
    """Return a file whose inputs and outputs are those of one operator."""
    return operators_file((kind, operands, outputs, options))
