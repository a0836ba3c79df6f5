"""What a kernel is asked to do: one op, how its tensors lie, how many rows a call. Kernels depend on nothing else."""

from dataclasses import dataclass

from codegen.layout import Storage
from mnet.graph import Int8Array, Op
from mnet.oracle import Requantization
from mnet.pairs import BinaryArithmetic
from mnet.reductions import SoftmaxArithmetic, SumArithmetic

Arithmetic = BinaryArithmetic | SumArithmetic | SoftmaxArithmetic | Int8Array  # a table of 256 results


@dataclass(frozen=True, eq=False)
class Call:
    """The work of one step: make `rows` output rows of `op`."""

    op: Op
    inputs: tuple[Storage, ...]
    output: Storage
    rows: int  # output rows of one call: 1, or the height of the output
    requantization: Requantization | None  # of convolutions and fully connected layers
    arithmetic: Arithmetic | None = None  # the integers of the other ops, where the oracle derives some
    pooled: int = 0  # pixels that the average over whole channels is taken of


@dataclass(frozen=True)
class Cost:
    """What a kernel takes, known from its view alone: the planner chooses by it."""

    cycles: int  # of one call on a Cortex-M4, by the timing model of mnet/cycles.py
    code_bytes: int  # of the function
