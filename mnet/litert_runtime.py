"""Run LiteRT, with any of its sets of kernels, and hand back every tensor that a Graph knows."""

import struct
import warnings
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import tflite as schema

from mnet.edges import from_quantized
from mnet.errors import MissingToolError, ToolError
from mnet.graph import Graph, Int8Array


class Kernels(Enum):
    """Which kernels LiteRT runs, by the name of its OpResolverType."""

    REFERENCE = "BUILTIN_REF"  # plain loops, the specification
    OPTIMISED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"  # the library's own fast ones: ruy, NEON or SSE
    XNNPACK = "BUILTIN"  # what an application gets by default: the XNNPACK delegate wherever it takes an operator


# The newest versions that LiteRT's table of reference kernels knows (kernels/register_ref.cc). The kernels are those of
# newer versions, and take int8; only the table stops there.
_NEWEST = {schema.BuiltinOperator.DEPTH_TO_SPACE: 1, schema.BuiltinOperator.TILE: 2}


def _registered(data: bytes) -> bytes:
    """Return a model whose operators have no newer version than LiteRT's table of reference kernels knows."""
    changed = bytearray(data)
    model = schema.Model.GetRootAs(data, 0)
    for code in (model.OperatorCodes(number) for number in range(model.OperatorCodesLength())):
        field = code._tab.Offset(8)  # of `version` in the schema's OperatorCode
        newest = _NEWEST.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        if newest and field and code.Version() > newest:
            struct.pack_into("<i", changed, code._tab.Pos + field, newest)
    return bytes(changed)


def run_litert(
    model: Path | bytes, graph: Graph, inputs: Mapping[str, Int8Array], kernels: Kernels = Kernels.REFERENCE
) -> dict[str, Int8Array]:
    """Return every activation of `graph` as LiteRT computes it, by tensor name.

    Args:
        model: the .tflite file that `graph` was read from, or its bytes.
        graph: names, shapes and indices of the tensors.
        inputs: int8 [n, height, width, channels] of each of the graph's inputs, by tensor name.
        kernels: which of its kernels. Delegates write every tensor, too, where all are preserved.

    Raises:
        MissingToolError: LiteRT is not installed.
        ToolError: it refuses the model.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingToolError("LiteRT is missing: pip install ai-edge-litert") from error
    data = model if isinstance(model, bytes) else model.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that all tensors are kept takes memory: they are what is wanted
            interpreter = Interpreter(
                model_content=_registered(data) if kernels is Kernels.REFERENCE else data,
                experimental_op_resolver_type=OpResolverType[kernels.value],
                experimental_preserve_all_tensors=True,
            )
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ToolError(f"LiteRT refuses {graph.name}: {error}") from error
    details = interpreter.get_input_details()  # in the order of the file, as the graph's are
    count = len(inputs[graph.inputs[0]])
    known = [tensor for tensor in graph.tensors.values() if tensor.index >= 0]
    tensors = {tensor.name: np.empty((count, *tensor.shape), tensor.type) for tensor in known}
    for number in range(count):
        for name, detail in zip(graph.inputs, details, strict=True):
            given = from_quantized(graph.tensors[name], inputs[name][number])
            interpreter.set_tensor(detail["index"], given.reshape(detail["shape"]))
        interpreter.invoke()
        for name, values in tensors.items():
            tensor = graph.tensors[name]
            values[number] = interpreter.get_tensor(tensor.index).reshape(tensor.shape)
    return tensors
