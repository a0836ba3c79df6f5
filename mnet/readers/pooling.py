"""Pooling: operators over windows."""

from collections.abc import Mapping

from mnet.flatbuffer import RawOperator
from mnet.graph import AveragePool2D, Op
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _average_pool_2d(operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    kernel = (int(operands.option(operator, "FilterHeight")), int(operands.option(operator, "FilterWidth")))
    stride, _, padding = operands.geometry(operator, source, kernel)
    operands.same_quantization(source, target)
    return [AveragePool2D(name, source.name, target.name, kernel, stride, padding, operands.fused(operator, target))]


READERS: Mapping[str, Reader] = {
    "AVERAGE_POOL_2D": Reader(_average_pool_2d, "any window"),
}
