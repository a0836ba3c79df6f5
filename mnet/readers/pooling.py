"""Pooling: operators over windows."""

from collections.abc import Mapping
from functools import partial

from mnet.flatbuffer import RawOperator
from mnet.graph import AveragePool2D, MaxPool2D, Op
from mnet.operands import Operands
from mnet.readers.reader import Reader


def _pool(kind: type[AveragePool2D | MaxPool2D], operands: Operands, operator: RawOperator, name: str) -> list[Op]:
    source, target = operands.input(operator), operands.output(operator)
    kernel = (int(operands.option(operator, "FilterHeight")), int(operands.option(operator, "FilterWidth")))
    stride, _, padding = operands.geometry(operator, source, kernel)
    operands.same_quantization(source, target)
    return [kind(name, source.name, target.name, kernel, stride, padding, operands.fused(operator, target))]


READERS: Mapping[str, Reader] = {
    "AVERAGE_POOL_2D": Reader(partial(_pool, AveragePool2D), "any window"),
    "MAX_POOL_2D": Reader(partial(_pool, MaxPool2D), "any window"),
}
