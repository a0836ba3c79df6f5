"""Plan -> a bound on the stack of generated C, for the header: no compiler is asked.

Assembly bodies take what they push. C bodies and the loop over the schedule take what compilers make of them: their
figures are the largest that gcc 12 (-O1, -O2, -Os) and clang 19 (-O2) made for many geometries and all cores, and some
bytes more. At -O3 gcc unrolls loops of C bodies as far as it likes; the bound does not hold there. tests/test_stack.py
compares it with the machine code of each core (mnet/stack.py).
"""

from dataclasses import dataclass

from codegen.convolution_mve import ConvolutionView as MveConvolution
from codegen.depthwise_mve import DepthwiseView as MveDepthwise
from codegen.packed import DepthwiseBlockView, PackedView
from codegen.plan import Plan, PlannedOp

# The public function and the loop over the schedule, without its row pointers.
_PUBLIC, _LOOP, _LOOP_MVE = 24, 72, 96
# A loop that takes rows of several inputs in turn lies between them; parameters beyond four words come by the stack.
_TURNS, _PORT = 40, 8

# What a C body takes, by family of kernels; packed convolutions have their taps on
# the stack besides, block-wise depthwise ones a pointer for each row of the window.
_COMPILED = {
    "accumulate": 56,
    "add": 128,
    "arg_max": 48,
    "convolution": 256,
    "convolution_bytes": 432,
    "convolution_dsp": 280,
    "convolution_fpu": 400,
    "convolution_mve": 152,
    "convolution_packed": 144,
    "convolution_shared": 200,
    "depthwise": 136,
    "depthwise_block": 208,
    "depthwise_dsp": 168,
    "depthwise_mve": 96,
    "depthwise_narrow": 152,
    "depthwise_planar": 136,
    "depthwise_shared": 184,
    "depthwise_wide": 136,
    "extremum": 96,
    "move": 96,
    "move_whole": 96,
    "rearrange": 96,
    "pool": 240,
    "lookup": 80,
    "l2_normalization": 136,
    "multiply": 112,
    "prelu": 144,
    "reduce": 72,
    "reduced": 64,
    "resize_bilinear": 120,
    "resize_nearest": 96,
    "row_sum": 56,
    "softmax": 168,
    "squared_difference": 160,
}
_BLOCK = 160  # a block-wise depthwise convolution without NAME_PORTABLE: C on ARMv7-M, C that calls assembly on ARMv6-M
_FILL = 40
_SAVED = 36  # r4 to r11 and lr
_SAVED_VECTORS = 64  # d8 to d15


@dataclass(frozen=True)
class StackBound:
    """Bytes that a call of a public function takes at most; interrupts come on top."""

    assembly: int  # where the core has the instructions of the target's assembly bodies
    compiled: int  # where C bodies stand in for them
    condition: str  # of the preprocessor, for the first


def stack_bound(plan: Plan) -> StackBound:
    """Return the bound for the functions that `plan` becomes."""
    pointers = max((entry.inputs for entry in plan.entries), default=1) + 1
    driver = _PUBLIC + (_LOOP_MVE if plan.target.mve else _LOOP) + -(-4 * pointers // 8) * 8
    driver += _PORT * (len(plan.graph.inputs) + len(plan.graph.outputs) - 2)
    driver += _TURNS if len(plan.graph.inputs) > 1 else 0
    fill = _FILL if any(not entry.op for entry in plan.entries) else 0
    if plan.target.mve:
        condition = "defined(__ARM_FEATURE_MVE)"
    elif plan.target.dsp:
        condition = "defined(__ARM_FEATURE_DSP) && defined(__ARM_FP)"
    else:
        condition = "defined(__thumb__)"
    return StackBound(
        assembly=driver + max([fill, *(_assembly_bytes(op) for op in plan.ops)]),
        compiled=driver + max([fill, *(_compiled_bytes(op) for op in plan.ops)]),
        condition=condition,
    )


def _compiled_bytes(op: PlannedOp) -> int:
    """Return what the C body of a kernel takes."""
    match op.view:
        case PackedView():
            own = 4 * op.view.taps
        case DepthwiseBlockView():
            own = 4 * op.view.height
        case _:
            own = 0
    return _COMPILED[op.kernel.family] + own


def _assembly_bytes(op: PlannedOp) -> int:
    """Return what a kernel takes on a core for which it has an assembly body, if it has one at all."""
    view = op.view
    match view:
        case PackedView():  # assembly called by C that gathers the taps
            return _compiled_bytes(op)
        case DepthwiseBlockView():
            return _BLOCK + 8 * max(view.height - 3, 0)
        case MveConvolution() if view.assembly:
            return _SAVED + _SAVED_VECTORS + 4 * view.kernel_height + 16
        case MveDepthwise() if view.assembly:
            return _SAVED + _SAVED_VECTORS + 8 * view.kernel[0] + 8
        case _ if getattr(view, "assembly", False):
            least = 48 if op.kernel.family == "depthwise_shared" else _SAVED
            return max(op.kernel.stack(op.call, view), least)
        case _:
            return _compiled_bytes(op)
