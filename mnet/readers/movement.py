"""Operators that move values and change none."""

from collections.abc import Mapping

from mnet.flatbuffer import RawOperator
from mnet.graph import Op, Pad, Reshape
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _pad(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    tensor, source, target = operands.operand(operator, 0), operands.input(operator), operands.output(operator)
    pads = operands.operand(operator, 1)
    dtype = "int64" if pads.type == "int64" else "int32"
    amounts = operands.constant(pads, dtype, "paddings").tolist()
    if pads.shape != (len(tensor.shape), 2) or any(pixels < 0 for pair in amounts for pixels in pair):
        raise operands.fail(f"has paddings of shape {list(pads.shape)} for {list(tensor.shape)}; the file is damaged.")
    others = amounts[: max(1, len(amounts) - 3)] + amounts[-1:]  # the batch and the channels
    if any(any(pair) for pair in others):
        raise operands.fail(f"pads by {amounts}: only rows and columns can be padded.")
    operands.same_quantization(source, target)
    (top, bottom), (left, right) = ([[0, 0]] * 4 + amounts)[-3:-1]
    return [Pad(name, source.name, target.name, (top, bottom, left, right))]


def _reshape(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    operands.same_quantization(source, target)
    return [Reshape(name, source.name, target.name, target.shape)]


READERS: Mapping[str, Reader] = {
    "PAD": Reader(_pad, "of rows and columns"),
    "RESHAPE": Reader(_reshape, "that keeps the values"),
    "SQUEEZE": Reader(_reshape, "as RESHAPE"),
    "EXPAND_DIMS": Reader(_reshape, "as RESHAPE"),
}
