"""What each op may choose: a kernel for each form that its tensors may take, at its price in cycles and flash."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from codegen.call import Call, Cost
from codegen.forms import Form
from codegen.kernel import Kernel
from codegen.selection import Stage, alternatives, call_of
from codegen.tables import phases_of
from codegen.targets import Target
from mnet.graph import Graph
from mnet.oracle import Oracle

# What a kernel without a cost function is taken for: the plain C ones, which are the last resort.
CYCLES_OF_C = 10  # per multiply-add, or per value
CODE_OF_C = 500
POINTER_CYCLES = 8  # of the loop over steps, for each input row of a call after the first

Forms = Mapping[str, Form]  # of each tensor


@dataclass(frozen=True, eq=False)
class Candidate:
    """One kernel for one stage, for given forms."""

    kernel: Kernel
    function: int  # the same for kernels of one family with equal views: they share their code
    cycles: int  # of one inference
    code_bytes: int
    constant_bytes: int
    stack_bytes: int


class Catalogue:
    """The candidates of every stage; what was asked once is remembered."""

    def __init__(self, graph: Graph, target: Target, oracle: Oracle, stages: Sequence[Stage]) -> None:
        self.graph, self.target, self.oracle = graph, target, oracle
        self.stages = tuple(stages)
        self._kernels = [alternatives(stage, graph, target) for stage in stages]
        self._found: dict[object, tuple[Candidate, ...]] = {}
        self._functions: dict[tuple[str, object], int] = {}

    def candidates(self, index: int, forms: Forms) -> tuple[Candidate, ...]:
        """Return what stage `index` may choose with these forms; nothing where no kernel takes them."""
        stage = self.stages[index]
        key = index, tuple(_what_matters(stage, forms[name]) for name in (*stage.inputs, stage.output))
        if key not in self._found:
            storages = {name: forms[name].storage for name in (*stage.inputs, stage.output)}
            call = call_of(stage, self.graph, self.oracle, storages)
            self._found[key] = tuple(self._price(index, call))
        return self._found[key]

    def _price(self, index: int, call: Call) -> Iterator[Candidate]:
        stage = self.stages[index]
        for kernel in self._kernels[index]:
            if not takes(kernel, call) or not self._has_columns(kernel, call):
                continue
            view = kernel.view(call)
            cost = kernel.price(call, view, self.target.timing) or _guess(call)
            copies = 1 if kernel.one_copy else len(set(phases_of(kernel, call, stage.calls)))
            words = len(kernel.pack(call, view, 0))
            function = self._functions.setdefault((kernel.family, view), len(self._functions))
            pointers = kernel.pointers_of_all(call)
            cycles = (cost.cycles + POINTER_CYCLES * (pointers - 1)) * stage.calls
            yield Candidate(kernel, function, cycles, cost.code_bytes, 4 * words * copies, kernel.stack(call, view))

    def _has_columns(self, kernel: Kernel, call: Call) -> bool:
        """Return whether the padding columns that a kernel reads lie in memory."""
        _, _, left, right = kernel.needs(call.op, self.graph, self.target).padding
        return all(source.layout.planar or (source.left >= left and source.right >= right) for source in call.inputs)


def _what_matters(stage: Stage, form: Form) -> object:
    """Return what kernels see of a tensor: of interleaved rows that come one by one, neither slots nor addresses."""
    storage = form.storage
    if storage.layout.planar or stage.rows != 1 or stage.reads_whole:
        return *form.key, storage.slots
    return storage.layout.name, storage.left, storage.right


def takes(kernel: Kernel, call: Call) -> bool:
    """Return whether a kernel reads and writes tensors that lie like those of a call."""
    if not all(source.layout.name in kernel.reads for source in call.inputs):
        return False
    if call.output.layout.name not in kernel.writes or not kernel.makes(call):
        return False
    single = kernel.consumes_rows or kernel.rows_read or len(call.inputs) > 1
    if call.inputs[0].apart and not single:
        first, last = kernel.window(call, 0, 0)
        return kernel.pointers(call) == last - first + 1
    return True


def _guess(call: Call) -> Cost:
    rows = max(call.rows, 1)
    values = call.output.width * call.output.tensor.shape[2] * rows
    weights = getattr(call.op, "weights", None)
    taps = weights.size // max(call.output.tensor.shape[2], 1) if weights is not None else 1
    return Cost(CYCLES_OF_C * values * max(int(taps), 1), CODE_OF_C)
