"""What reads one kind of operator."""

from collections.abc import Callable
from dataclasses import dataclass

from mnet.flatbuffer import RawOperator
from mnet.graph import Op
from mnet.operands import Operands


@dataclass(frozen=True)
class Reader:
    """How one kind of operator of a file becomes ops, and how far mnet goes with it."""

    read: Callable[[Operands, RawOperator, str], list[Op]]  # operands, operator, name -> ops; raises ModelError
    extent: str  # in words, for `mnet ops`
