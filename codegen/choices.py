"""What each op may choose: a kernel for each way in which its tensors may lie, at its price in cycles and flash."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from codegen.call import Call, Cost
from codegen.kernels import Kernel, variants
from codegen.layout import PLANAR8, PLANAR16, WIDE8, WIDE16, Layout, Storage
from codegen.selection import Stage, call_of
from codegen.tables import phases_of
from codegen.targets import Target
from mnet.graph import Graph
from mnet.oracle import Oracle

NARROW: Mapping[str, Layout] = {WIDE16.name: WIDE8, PLANAR16.name: PLANAR8}  # the same in bytes

# What a kernel without a cost function is taken for: the plain C ones, which are the last resort.
CYCLES_OF_C = 10  # per multiply-add, or per value
CODE_OF_C = 500

Layouts = Mapping[str, Layout]  # tensor -> layout


@dataclass(frozen=True, eq=False)
class Candidate:
    """One kernel for one stage, for given layouts."""

    kernel: Kernel
    function: int  # the same for kernels of one family with equal views: they share their code
    cycles: int  # of one inference
    code_bytes: int
    constant_bytes: int
    stack_bytes: int


def layouts_of(
    storages: Mapping[str, Storage], graph: Graph, stages: Sequence[Stage], target: Target
) -> dict[str, tuple[Layout, ...]]:
    """Return the layouts that each tensor may have, its usual one first."""
    allowed = {}
    for name, storage in storages.items():
        layouts = [storage.layout]
        narrow = NARROW.get(storage.layout.name)
        if narrow and target.dsp and name not in (graph.input, graph.output):
            reads = all(
                any(narrow.name in kernel.reads for kernel in variants(stage.kernel, stage.op, graph, target))
                for stage in stages
                if name in stage.inputs
            )
            writes = all(
                any(narrow.name in kernel.writes for kernel in variants(stage.kernel, stage.op, graph, target))
                for stage in stages
                if name == stage.output
            )
            centred = narrow is not PLANAR8 or storage.tensor.zero_point == -128
            if reads and writes and centred:
                layouts.append(narrow)
        allowed[name] = tuple(layouts)
    return allowed


class Catalogue:
    """The candidates of every stage; what was asked once is remembered."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        oracle: Oracle,
        stages: Sequence[Stage],
        storages: Mapping[str, Storage],
    ) -> None:
        self.graph, self.target, self.oracle = graph, target, oracle
        self.stages, self.storages = tuple(stages), storages
        self._found: dict[tuple[int, tuple[str, ...]], tuple[Candidate, ...]] = {}
        self._functions: dict[tuple[str, object], int] = {}

    def storages_with(self, layouts: Layouts) -> dict[str, Storage]:
        """Return how the tensors lie, with these layouts."""
        return {name: replace(storage, layout=layouts[name]) for name, storage in self.storages.items()}

    def candidates(self, index: int, layouts: Layouts) -> tuple[Candidate, ...]:
        """Return what stage `index` may choose with these layouts; nothing where no kernel takes them."""
        stage = self.stages[index]
        names = (*stage.inputs, stage.output)
        key = index, tuple(layouts[name].name for name in names)
        if key not in self._found:
            storages = {name: replace(self.storages[name], layout=layouts[name]) for name in names}
            call = call_of(stage, self.graph, self.oracle, storages)
            self._found[key] = tuple(self._price(stage, call))
        return self._found[key]

    def _price(self, stage: Stage, call: Call) -> Iterator[Candidate]:
        for kernel in variants(stage.kernel, stage.op, self.graph, self.target):
            if not all(source.layout.name in kernel.reads for source in call.inputs):
                continue
            if call.output.layout.name not in kernel.writes or not kernel.makes(call):
                continue
            view = kernel.view(call)
            cost = kernel.cost(call, view) if kernel.cost else _guess(call)
            copies = 1 if kernel.one_copy else len(set(phases_of(stage, call)))
            words = len(kernel.pack(call, view, 0))
            function = self._functions.setdefault((kernel.family, view), len(self._functions))
            cycles = cost.cycles * stage.calls
            yield Candidate(kernel, function, cycles, cost.code_bytes, 4 * words * copies, kernel.stack(call, view))


def _guess(call: Call) -> Cost:
    rows = max(call.rows, 1)
    values = call.output.width * call.output.tensor.shape[2] * rows
    weights = getattr(call.op, "weights", None)
    taps = weights.size // max(call.output.tensor.shape[2], 1) if weights is not None else 1
    return Cost(CYCLES_OF_C * values * max(int(taps), 1), CODE_OF_C)
