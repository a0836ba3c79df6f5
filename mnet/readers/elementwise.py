"""Operators that work value by value, on one tensor or on two."""

from collections.abc import Mapping

from mnet.elementwise import reason_to_refuse
from mnet.flatbuffer import RawOperator
from mnet.graph import Add, Op, Unary, UnaryFunction
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _add(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    first, second, target = operands.input(operator, 0), operands.input(operator, 1), operands.output(operator)
    if first.shape != second.shape:
        raise operands.fail(f"adds {first.shape} and {second.shape}: both inputs must have one shape.")
    if 2 * max(first.scale, second.scale) >= target.scale * (1 << 20):
        raise operands.fail("its output scale is 500,000 times finer than its inputs'; quantize the model again.")
    return [Add(name, (first.name, second.name), target.name, operands.fused(operator, target))]


def _unary(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    if source.shape != target.shape:
        raise operands.fail(f"makes {target.shape} of {source.shape}; the file is damaged.")
    function, alpha = UnaryFunction(operator.kind), 0.0
    if function is UnaryFunction.LEAKY_RELU:
        alpha = float(operands.option(operator, "Alpha"))
    if function is UnaryFunction.GELU and operands.option(operator, "Approximate"):
        function = UnaryFunction.GELU_TANH
    op = Unary(name, source.name, target.name, function, alpha)
    reason = reason_to_refuse(op, source, target)
    if reason:
        raise operands.fail(f"{reason}; quantize the model again.")
    return [op]


_UNARY = {
    "ABS": "",
    "ELU": "with --oracle tflm",
    "EXP": "with --oracle litert",
    "GELU": "exact or approximate, with --oracle litert",
    "HARD_SWISH": "",
    "LEAKY_RELU": "any slope",
    "LOG": "with --oracle litert",
    "LOGISTIC": "",
    "NEG": "with --oracle litert",
    "QUANTIZE": "from int8 to int8",
    "RELU": "",
    "RELU6": "",
    "RELU_0_TO_1": "with --oracle litert",
    "RELU_N1_TO_1": "with --oracle litert",
    "TANH": "",
}

READERS: Mapping[str, Reader] = {
    "ADD": Reader(_add, "of two activations of one shape"),
    **{kind: Reader(_unary, extent or "any shape") for kind, extent in _UNARY.items()},
}
