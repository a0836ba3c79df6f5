"""A .tflite file of one operator, in the shapes that a file has: for readers of what no op of a Graph can say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tflite as schema

from tests.writer import packed

_TYPES = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32, "int64": schema.TensorType.INT64}


def one_operator(
    kind: str,
    operands: Sequence[tuple[int, ...] | npt.NDArray[Any]],
    outputs: Sequence[tuple[int, ...]],
    options: Mapping[str, Any] | None = None,
    zero_point: int = 3,
) -> bytes:
    """Return a file whose inputs and outputs are those of one operator.

    Args:
        kind: its name in the schema.
        operands: in its order; the shape of an input, or the values of a constant.
        outputs: their shapes.
        options: fields of its table of options.
        zero_point: of every int8 tensor.
    """
    from ai_edge_litert import schema_py_generated as objects

    model, subgraph, operator = objects.ModelT(), objects.SubGraphT(), objects.OperatorT()
    model.version, model.subgraphs, model.buffers = 3, [subgraph], [objects.BufferT()]
    subgraph.tensors, subgraph.inputs, subgraph.outputs = [], [], []

    def tensor(name: str, shape: tuple[int, ...], dtype: str, data: bytes = b"") -> int:
        made = objects.TensorT()
        made.name, made.shape, made.type = name, list(shape), _TYPES[dtype]
        if dtype == "int8":
            made.quantization = objects.QuantizationParametersT()
            made.quantization.scale = np.array([0.25], np.float32)
            made.quantization.zeroPoint = np.array([zero_point], np.int64)
        if data:
            buffer = objects.BufferT()
            buffer.data = np.frombuffer(data, np.uint8)
            made.buffer = len(model.buffers)
            model.buffers.append(buffer)
        subgraph.tensors.append(made)
        return len(subgraph.tensors) - 1

    operator.inputs = []
    for number, operand in enumerate(operands):
        if isinstance(operand, np.ndarray):
            index = tensor(f"constant_{number}", operand.shape, operand.dtype.name, operand.tobytes())
        else:
            index = tensor(f"input_{number}", operand, "int8")
            subgraph.inputs.append(index)
        operator.inputs.append(index)
    operator.outputs = [tensor(f"output_{number}", shape, "int8") for number, shape in enumerate(outputs)]
    subgraph.outputs, subgraph.operators = operator.outputs, [operator]
    if options is not None:
        table = kind.title().replace("_", "") + "Options"
        operator.builtinOptionsType = getattr(objects.BuiltinOptions, table)
        operator.builtinOptions = getattr(objects, f"{table}T")()
        for field, value in options.items():
            setattr(operator.builtinOptions, field, value)
    code = objects.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
    model.operatorCodes = [code]
    return packed(model)
