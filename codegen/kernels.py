"""The table of kernels: a row says which ops a kernel accepts, how its tensors must lie, and where its C text is.

To add a kernel: a row here, a template in templates/kernels, and a view (what the text depends on) with a packer.
The first row that accepts an op decides what the op needs of its tensors and how many rows it makes in a call; the
planner then chooses among the rows that need the same, its variants, and among the layouts that they read and write.
"""

import itertools
from collections.abc import Sequence
from functools import partial

from codegen import (
    convolution,
    convolution_bytes,
    convolution_fpu,
    convolution_mve,
    convolution_shared,
    depthwise,
    depthwise_mve,
    depthwise_narrow,
    depthwise_planar,
    depthwise_shared,
    depthwise_wide,
    elementwise,
    movement,
    packed,
    plain,
    pooling,
    reduction,
    resizing,
)
from codegen.call import Call
from codegen.convolution_cost import convolution_cost, fpu_cost
from codegen.depthwise_cost import depthwise_cost
from codegen.depthwise_cost import shared_cost as depthwise_shared_cost
from codegen.kernel import ANY, NO_PADDING, Kernel, Needs, only, padding_of, wide, wide_rows, wide_whole
from codegen.layout import PLANAR16, WIDE8, WIDE16
from codegen.mve_cost import convolution_mve_cost, depthwise_mve_cost
from codegen.packed_cost import block_cost, packed_cost
from codegen.plain_cost import convolution_in_c_cost, depthwise_in_c_cost
from codegen.targets import Target
from mnet.graph import (
    Conv2D,
    DepthwiseConv2D,
    FullyConnected,
    Graph,
    Op,
    inputs_of,
)

_PLANAR = frozenset({"planar16", "planar8"})
_WIDE = frozenset({"wide16", "wide8"})
_DSP_OUTPUT = _PLANAR | _WIDE


def _window_pointers(call: Call) -> int:
    """Return one pointer for each row of the window."""
    match call.op:
        case Conv2D() | DepthwiseConv2D():
            height = call.op.weights.shape[1] if isinstance(call.op, Conv2D) else call.op.weights.shape[0]
            return 1 if call.rows > 1 else (int(height) - 1) * call.op.dilation[0] + 1
        case FullyConnected():
            return call.inputs[0].height
        case _:
            return 1


def _convolution_pointers(call: Call) -> int:
    """Return the pointers of a DSP convolution: a fully connected layer reads one run."""
    return 1 if isinstance(call.op, FullyConnected) else _window_pointers(call)


_GAPS = "pixels of the input do not follow each other"


def _is_one_run(op: FullyConnected, graph: Graph, target: Target) -> bool:
    """Return whether the rows of the input follow each other: no other reader wants something beside them."""
    needs = (
        kernel.needs(other, graph, target)
        for other in graph.consumers(op.input)
        if not isinstance(other, FullyConnected)
        for kernel in candidates(other, graph, target)
    )
    return not any(need.slack_bytes or any(need.padding[2:]) for need in needs)


def _convolution_dsp(op: Op, graph: Graph, target: Target) -> str | None:
    if not isinstance(op, Conv2D | FullyConnected):
        return "not a convolution"
    height, width, channels = graph.tensors[op.input].shape
    if isinstance(op, FullyConnected) and height * width > 1 and channels % 4:
        return _GAPS
    if isinstance(op, FullyConnected) and not _is_one_run(op, graph, target):
        return _GAPS
    return convolution.convolution_accepts(op, graph) if wide(target) is WIDE16 else "rows are not pairs for SMLAD"


def _reads_words(call: Call) -> bool:
    """Return whether a window of bytes is whole words, so that it can be widened."""
    source = call.inputs[0]
    return source.layout is not WIDE8 or source.stored_channels % 4 == 0


def _convolution_shared(op: Op, graph: Graph, target: Target) -> str | None:
    return _convolution_dsp(op, graph, target) or convolution_shared.shared_accepts(op, graph)


def _convolution_bytes(op: Op, graph: Graph, target: Target) -> str | None:
    return _convolution_dsp(op, graph, target) or convolution_bytes.bytes_accepts(op, graph)


def _convolution_fpu(op: Op, graph: Graph, target: Target) -> str | None:
    if wide(target) is not WIDE16 or not target.fpu:
        return "no DSP instructions, or no FPU"
    if _small_pointwise(op, graph):
        return "all rows are made in one call"
    return convolution_fpu.fpu_accepts(op, graph)


def _depthwise_dsp(op: Op, graph: Graph, target: Target) -> str | None:
    if not isinstance(op, DepthwiseConv2D):
        return "not a depthwise convolution"
    return depthwise.depthwise_accepts(op, graph) if wide(target) is WIDE16 else "rows are not pairs for SMLAD"


def _depthwise_shared(op: Op, graph: Graph, target: Target) -> str | None:
    refused = _depthwise_dsp(op, graph, target)
    return refused or depthwise_shared.shared_accepts(op, graph)


def _depthwise_narrow(op: Op, graph: Graph, target: Target) -> str | None:
    return _depthwise_wide(op, graph, target) or depthwise.depthwise_accepts(op, graph)


def _depthwise_planar(op: Op, graph: Graph, target: Target) -> str | None:
    return depthwise_planar.planar_accepts(op, graph) if wide(target) is WIDE16 else "rows are not pairs for SMLAD"


def _depthwise_wide(op: Op, graph: Graph, target: Target) -> str | None:
    return depthwise_wide.wide_accepts(op, graph) if wide(target) is WIDE16 else "rows are not pairs for SMLAD"


def _depthwise_makes(call: Call, compact: bool, shared: bool, apart: bool) -> bool:
    if call.inputs[0].apart != apart or (apart and call.rows > 1):
        return False
    return not shared or depthwise.depthwise_shares(call, compact)


def _convolution_mve(op: Op, graph: Graph, target: Target) -> str | None:
    if isinstance(op, FullyConnected) and target.mve and not _is_one_run(op, graph, target):
        return _GAPS
    return convolution_mve.convolution_accepts(op, graph) if target.mve else "no vectors"


def _depthwise_mve(op: Op, graph: Graph, target: Target) -> str | None:
    return depthwise_mve.depthwise_accepts(op, graph) if target.mve else "no vectors"


def _convolution_packed(op: Op, graph: Graph, target: Target) -> str | None:
    return "DSP instructions do better" if target.dsp else packed.packed_accepts(op, graph)


def _depthwise_block(op: Op, graph: Graph, target: Target) -> str | None:
    return "DSP instructions do better" if target.dsp else packed.depthwise_accepts(op, graph)


def _convolution_needs(op: Op, graph: Graph, target: Target) -> Needs:
    if isinstance(op, FullyConnected):
        return Needs(wide(target), whole=True)
    assert isinstance(op, Conv2D)
    # A window of an odd number of 16-bit taps is read in pairs, one value over its end.
    odd = wide(target) is WIDE16 and op.weights.shape[2] * op.weights.shape[3] % 2 == 1
    return Needs(wide(target), op.padding, slack_bytes=2 if odd else 0)


def _depthwise_needs(op: Op, graph: Graph, target: Target) -> Needs:
    top, bottom, _, _ = padding_of(op)  # of calls that make one row; a call that makes them all knows the edges
    return Needs(PLANAR16, (top, bottom, 0, 0))


def is_small(op: Op, graph: Graph) -> bool:
    """Return whether the maps of `op` are small enough for a whole-layer call to be unrolled, and stored whole."""
    shapes = [graph.tensors[name].shape for name in (*inputs_of(op), op.output)]
    return shapes[-1][0] > 1 and all(height * width <= 64 for height, width, _ in shapes)


def _small_pointwise(op: Op, graph: Graph) -> bool:
    return is_small(op, graph) and _plain_pointwise(op, graph)


def _plain_pointwise(op: Op, graph: Graph) -> bool:
    """Return whether `op` is a 1x1 convolution of every pixel: its rows may be made in one call."""
    if not isinstance(op, Conv2D):
        return False
    return op.weights.shape[1:3] == (1, 1) and op.stride == (1, 1) and op.padding == NO_PADDING


def _narrow_needs(op: Op, graph: Graph, target: Target) -> Needs:
    """Return no columns where padding is stored as 0: the kernel leaves out what would be multiplied by it."""
    top, bottom, left, right = padding_of(op)
    columns = (0, 0) if graph.tensors[inputs_of(op)[0]].zero_point == WIDE8.offset else (left, right)
    return Needs(wide(target), (top, bottom, *columns))


KERNELS: tuple[Kernel, ...] = (
    Kernel(
        family="convolution_mve",
        template="convolution_mve.c.j2",
        accepts=_convolution_mve,
        reads=frozenset({"bytes8"}),
        writes=frozenset({"bytes8"}),
        needs=_convolution_needs,
        view=convolution_mve.convolution_view,
        pack=convolution_mve.convolution_pack,
        pointers=_window_pointers,
        timed=lambda call, view, timing: convolution_mve_cost(view, timing),
    ),
    Kernel(
        family="depthwise_mve",
        template="depthwise_mve.c.j2",
        accepts=_depthwise_mve,
        reads=frozenset({"bytes8"}),
        writes=frozenset({"bytes8"}),
        needs=wide_rows,
        view=depthwise_mve.depthwise_view,
        pack=depthwise_mve.depthwise_pack,
        pointers=_window_pointers,
        timed=lambda call, view, timing: depthwise_mve_cost(view, timing),
    ),
    *(
        Kernel(
            family="convolution_fpu",
            template="convolution_fpu.c.j2",
            accepts=_convolution_fpu,
            reads=frozenset({"wide16"}),
            writes=_DSP_OUTPUT,
            needs=_convolution_needs,
            view=partial(convolution_fpu.fpu_view, unrolled_words=words),
            pack=convolution_fpu.fpu_pack,
            makes=lambda call: call.rows == 1,
            pointers=_window_pointers,
            cost=lambda call, view: fpu_cost(view),
            stack=lambda call, view: int(view.stack_bytes),
        )
        for words in (convolution_fpu.UNROLLED_WORDS, convolution_fpu.COMPACT_WORDS, convolution_fpu.SMALL_WORDS)
    ),
    *(
        Kernel(
            family="convolution_dsp",
            template="convolution_dsp.c.j2",
            accepts=_convolution_dsp,
            reads=_WIDE,
            writes=_DSP_OUTPUT,
            needs=_convolution_needs,
            view=partial(convolution.convolution_view, unrolling=unrolling),
            pack=convolution.convolution_pack,
            can_be_whole=_plain_pointwise,
            makes=_reads_words,
            pointers=_convolution_pointers,
            cost=lambda call, view: convolution_cost(view),
            stack=lambda call, view: int(view.stack_bytes),
        )
        for unrolling in (convolution.FAST, convolution.COMPACT, convolution.SMALL)
    ),
    Kernel(
        family="convolution_shared",
        template="convolution_shared.c.j2",
        accepts=_convolution_shared,
        reads=_WIDE,
        writes=_DSP_OUTPUT,
        needs=_convolution_needs,
        view=convolution_shared.shared_view,
        pack=convolution_shared.shared_pack,
        can_be_whole=_plain_pointwise,
        makes=lambda call: _reads_words(call) and convolution_shared.shared_makes(call),
        pointers=_convolution_pointers,
        cost=convolution_shared.shared_cost,
        stack=lambda call, view: convolution_shared.shared_stack_bytes(call),
    ),
    *(  # bytes widened in registers
        Kernel(
            family="convolution_dsp",
            template="convolution_dsp.c.j2",
            accepts=_convolution_dsp,
            reads=frozenset({"wide8"}),
            writes=_DSP_OUTPUT,
            needs=_convolution_needs,
            view=partial(convolution.convolution_view, unrolling=unrolling, in_registers=True),
            pack=convolution.convolution_pack,
            can_be_whole=_plain_pointwise,
            makes=convolution.widens_in_registers,
            pointers=_convolution_pointers,
            cost=lambda call, view: convolution_cost(view),
            stack=lambda call, view: int(view.stack_bytes),
        )
        for unrolling in (convolution.FAST, convolution.COMPACT, convolution.SMALL)
    ),
    Kernel(
        family="convolution_bytes",
        template="convolution_bytes.c.j2",
        accepts=_convolution_bytes,
        reads=frozenset({"wide8"}),
        writes=_DSP_OUTPUT,
        needs=_convolution_needs,
        view=convolution_bytes.bytes_view,
        pack=convolution_bytes.bytes_pack,
        makes=convolution_bytes.bytes_makes,
        pointers=_window_pointers,
        cost=lambda call, view: convolution_bytes.bytes_cost(view),
        stack=lambda call, view: int(view.stack_bytes),
    ),
    *(
        Kernel(
            family="depthwise_dsp",
            template="depthwise_dsp.c.j2",
            accepts=_depthwise_dsp,
            reads=_PLANAR,
            writes=_WIDE,
            needs=_depthwise_needs,
            view=partial(depthwise.depthwise_view, compact=compact, shared=shared, straight=straight),
            pack=depthwise.depthwise_pack,
            can_be_whole=lambda op, graph: True,
            ring_of_window=True,
            makes=partial(_depthwise_makes, compact=compact, shared=shared, apart=False),
            cost=lambda call, view: depthwise_cost(view, call.inputs[0].tensor.shape[2]),
            one_copy=compact,
        )
        for shared, compact, straight in itertools.product((False, True), (False, True), (depthwise.STRAIGHT_PIXELS, 0))
    ),
    *(  # rows that lie apart
        Kernel(
            family="depthwise_dsp",
            template="depthwise_dsp.c.j2",
            accepts=_depthwise_dsp,
            reads=_PLANAR,
            writes=_WIDE,
            needs=_depthwise_needs,
            view=partial(depthwise.depthwise_view, compact=compact, shared=shared),
            pack=depthwise.depthwise_pack,
            makes=partial(_depthwise_makes, compact=compact, shared=shared, apart=True),
            pointers=lambda call: 3,
            cost=lambda call, view: depthwise_cost(view, call.inputs[0].tensor.shape[2]),
        )
        for shared, compact in itertools.product((False, True), (False, True))
    ),
    Kernel(
        family="depthwise_shared",
        template="depthwise_shared.c.j2",
        accepts=_depthwise_shared,
        reads=_PLANAR,
        writes=_WIDE,
        needs=_depthwise_needs,
        view=depthwise_shared.shared_view,
        pack=depthwise_shared.shared_pack,
        can_be_whole=lambda op, graph: True,
        ring_of_window=True,
        makes=lambda call: not call.inputs[0].apart,
        cost=lambda call, view: depthwise_shared_cost(view, call),
        one_copy=True,
    ),
    Kernel(
        family="depthwise_planar",
        template="depthwise_planar.c.j2",
        accepts=_depthwise_planar,
        reads=frozenset({"planar16"}),
        writes=_WIDE,
        needs=_depthwise_needs,
        view=depthwise_planar.planar_view,
        pack=depthwise_planar.planar_pack,
        pointers=_window_pointers,
        cost=lambda call, view: depthwise_planar.planar_cost(view),
    ),
    Kernel(
        family="convolution_packed",
        template="convolution_packed.c.j2",
        accepts=_convolution_packed,
        reads=frozenset({"wide8"}),
        writes=frozenset({"wide8"}),
        needs=wide_rows,
        view=packed.packed_view,
        pack=packed.packed_pack,
        pointers=_window_pointers,
        timed=packed_cost,
    ),
    Kernel(
        family="convolution",
        template="convolution.c.j2",
        accepts=only(Conv2D, FullyConnected),
        reads=ANY,
        writes=ANY,
        needs=lambda op, graph, target: (
            wide_whole(op, graph, target) if isinstance(op, FullyConnected) else wide_rows(op, graph, target)
        ),
        view=plain.convolution_view,
        pack=plain.convolution_pack,
        pointers=_window_pointers,
        timed=lambda call, view, timing: convolution_in_c_cost(view, timing),
    ),
    *(
        Kernel(
            family="depthwise_narrow",
            template="depthwise_narrow.c.j2",
            accepts=_depthwise_narrow,
            reads=_WIDE,
            writes=_WIDE,
            needs=_narrow_needs,
            view=partial(depthwise_narrow.narrow_view, compact=compact),
            pack=depthwise_narrow.narrow_pack,
            makes=lambda call: call.rows == 1,
            pointers=_window_pointers,
            cost=lambda call, view: depthwise_narrow.narrow_cost(view),
        )
        for compact in (False, True)
    ),
    Kernel(
        family="depthwise_wide",
        template="depthwise_wide.c.j2",
        accepts=_depthwise_wide,
        reads=_WIDE,
        writes=_WIDE,
        needs=wide_rows,
        view=depthwise_wide.wide_view,
        pack=depthwise_wide.wide_pack,
        pointers=_window_pointers,
        cost=lambda call, view: depthwise_wide.wide_cost(view),
    ),
    Kernel(
        family="depthwise_block",
        template="depthwise_block.c.j2",
        accepts=_depthwise_block,
        reads=frozenset({"wide8"}),
        writes=frozenset({"wide8"}),
        needs=wide_rows,
        view=packed.depthwise_view,
        pack=packed.depthwise_pack,
        pointers=_window_pointers,
        timed=lambda call, view, timing: block_cost(view, timing),
    ),
    Kernel(
        family="depthwise",
        template="depthwise.c.j2",
        accepts=only(DepthwiseConv2D),
        reads=ANY,
        writes=ANY,
        needs=wide_rows,
        view=plain.depthwise_view,
        pack=plain.depthwise_pack,
        pointers=_window_pointers,
        timed=lambda call, view, timing: depthwise_in_c_cost(view, timing),
    ),
    *elementwise.KERNELS,
    *movement.KERNELS,
    *pooling.KERNELS,
    *resizing.KERNELS,
    *reduction.KERNELS,
)


def candidates(op: Op, graph: Graph, target: Target) -> Sequence[Kernel]:
    """Return the kernels that accept `op`, best first."""
    left = (kernel for kernel in KERNELS if kernel.family not in target.without)
    return [kernel for kernel in left if kernel.accepts(op, graph, target) is None]
