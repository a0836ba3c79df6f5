"""Operators that work value by value, on one tensor or on two."""

from collections.abc import Mapping

from mnet.flatbuffer import RawOperator
from mnet.graph import Add, Op
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _add(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    first, second, target = operands.input(operator, 0), operands.input(operator, 1), operands.output(operator)
    if first.shape != second.shape:
        raise operands.fail(f"adds {first.shape} and {second.shape}: both inputs must have one shape.")
    if 2 * max(first.scale, second.scale) >= target.scale * (1 << 20):
        raise operands.fail("its output scale is 500,000 times finer than its inputs'; quantize the model again.")
    return [Add(name, (first.name, second.name), target.name, operands.fused(operator, target))]


READERS: Mapping[str, Reader] = {
    "ADD": Reader(_add, "of two activations of one shape"),
}
