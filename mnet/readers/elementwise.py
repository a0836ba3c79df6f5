"""Operators that work value by value, on one tensor or on two."""

from collections.abc import Mapping

from mnet import elementwise
from mnet.axes import shape_of
from mnet.flatbuffer import RawOperator, RawTensor
from mnet.graph import Binary, BinaryFunction, Constant, Graph, Op, Tensor, Unary, UnaryFunction
from mnet.operands import Operands
from mnet.pairs import reason_to_refuse
from mnet.readers.reader import Reader

_FUSED = {BinaryFunction.ADD, BinaryFunction.SUB, BinaryFunction.MUL}  # whose options name an activation


def _binary(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    given = [operands.operand(operator, position) for position in (0, 1)]
    constants = [position for position, tensor in enumerate(given) if tensor.data is not None]
    if len(constants) == 2:
        raise operands.fail("takes two constants: convert the model again, with its constants folded.")
    target, function = operands.output(operator), BinaryFunction(operator.kind)
    inputs = tuple(operands.input(operator, position).name for position in (0, 1) if position not in constants)
    activation = operands.fused(operator, target) if function in _FUSED else (-128, 127)
    constant = _constant(operands, given[constants[0]]) if constants else None
    op = Binary(name, inputs, target.name, function, activation, constant, constants == [0])
    _check_shapes(operands, op, [tensor.shape for tensor in given], target)
    by_name = {tensor.name: tensor for tensor in operands.tensors.values()}
    reason = reason_to_refuse(op, Graph("", by_name, (), (), (), ""))
    if reason:
        raise operands.fail(f"{reason}; quantize the model again.")
    return [op]


def _constant(operands: Operands, tensor: RawTensor) -> Constant:
    values = operands.constant(tensor, "int8", "operand")
    if not values.size:
        raise operands.fail(f"has an operand of shape {list(tensor.shape)}; the file is damaged.")
    scale, zero_point = operands.quantization(tensor)
    return Constant(values.reshape(shape_of(tensor.shape)), scale, zero_point)


def _check_shapes(operands: Operands, op: Binary, shapes: list[tuple[int, ...]], target: Tensor) -> None:
    """Refuse operands that do not make the output, or whose axes would be paired in another way than in the file."""
    by_name = {tensor.name: tensor.shape for tensor in operands.tensors.values()}
    made = op.output_shape(*(by_name[name] for name in op.inputs))
    plain = all(len(shape) < 4 or (len(shape) == 4 and shape[0] == 1) for shape in shapes)
    if made != target.shape or not (plain or shapes[0] == shapes[1]):
        raise operands.fail(
            f"makes {target.shape} of {list(shapes[0])} and {list(shapes[1])}: operands must have equal sizes, or size "
            "1, along rows, columns and channels."
        )
    if op.function is BinaryFunction.PRELU and (op.constant_first or by_name[op.inputs[0]] != target.shape):
        raise operands.fail("has slopes of a larger shape than its input; the file is damaged.")


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
    reason = elementwise.reason_to_refuse(op, source, target)
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
    "QUANTIZE": "from int8 to int8; from or to float32 and uint8 at the edges of a model, where it is cut off",
    "RELU": "",
    "RELU6": "",
    "RELU_0_TO_1": "with --oracle litert",
    "RELU_N1_TO_1": "with --oracle litert",
    "TANH": "",
}

READERS: Mapping[str, Reader] = {
    **{
        function.value: Reader(_binary, "of activations or one constant; size 1 along an axis serves all of it")
        for function in BinaryFunction
    },
    **{kind: Reader(_unary, extent or "any shape") for kind, extent in _UNARY.items()},
}
