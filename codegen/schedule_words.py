"""The schedule in words: repetitions are folded, so that a few lines tell what hundreds of steps do.

>>> lines(fold(("take", "take", "conv", "take", "take", "conv", "pool")))
['2 times: 2 take, conv', 'pool']
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codegen.plan import Plan
from mnet.graph import numbered

MOST_LINES = 12
_ROW = "row of "  # begins the steps that take one
_WIDTH = 104
_INDENT = "   "
_FEW = 4  # neighbours that are named by the first and the last


@dataclass(frozen=True)
class Repeat:
    """A body that runs several times in a row."""

    times: int
    body: tuple["Node", ...]


Node = str | Repeat


def words_of(plan: Plan) -> list[str]:
    """Return at most 12 lines that say what runs in which order; fills of padding are left out."""
    one = len(plan.graph.inputs) == 1
    inputs = ("the input",) if one else numbered("input", len(plan.graph.inputs))
    names = []
    for step in plan.schedule:
        if step < 0:
            names.append(_ROW + inputs[~step])
        elif plan.entries[step].op:
            names.append(plan.entries[step].op)
    nodes = shortened(fold(names), [op.name for op in plan.ops])
    for inline in (0, _WIDTH // 2, _WIDTH):
        text = lines(nodes, inline)
        if len(text) <= MOST_LINES:
            return text
    return [*text[: MOST_LINES - 1], f"... and so on: {len(plan.schedule):,} steps in all"]


def turns_of(plan: Plan) -> list[str]:
    """Return lines that say in which order rows of several inputs are taken."""
    inputs = numbered("input", len(plan.graph.inputs))
    nodes = fold([_ROW + inputs[~step] for step in plan.schedule if step < 0])
    return lines(nodes, _WIDTH // 2)


def fold(steps: Sequence[Node]) -> tuple[Node, ...]:
    """Return the steps with what repeats folded: first the repetition that saves most, then inside and around it."""
    found = _longest(steps)
    if found is None:
        return tuple(steps)
    start, period, times = found
    body = fold(steps[start : start + period])
    end = start + period * times
    return (*fold(steps[:start]), Repeat(times, body), *fold(steps[end:]))


def shortened(nodes: Sequence[Node], order: Sequence[str]) -> tuple[Node, ...]:
    """Return the nodes with runs of neighbours in `order` named by their ends.

    >>> shortened(("c", "a", "b", "c", "d", "a"), ["a", "b", "c", "d"])
    ('c', 'a to d', 'a')
    """
    place = {name: number for number, name in enumerate(order)}
    result: list[Node] = []
    at = 0
    while at < len(nodes):
        node, end = nodes[at], at + 1
        if isinstance(node, Repeat):
            result.append(Repeat(node.times, shortened(node.body, order)))
        elif node not in place:
            result.append(node)
        else:
            while end < len(nodes) and nodes[end] in order and place[str(nodes[end])] == place[node] + end - at:
                end += 1
            short = end - at >= _FEW
            result += [f"{node} to {nodes[end - 1]}"] if short else nodes[at:end]
        at = end
    return tuple(result)


def _longest(steps: Sequence[Node]) -> tuple[int, int, int] | None:
    """Return start, length and times of the repetition that saves most steps; None where nothing repeats.

    Of the places where it can begin, the one is taken after which the input comes, as readers expect.
    """
    numbers: dict[Node, int] = {}
    codes = np.array([numbers.setdefault(step, len(numbers)) for step in steps])
    best: tuple[int, int, int] | None = None
    saved = 0
    for period in range(1, len(codes) // 2 + 1):
        same = np.concatenate(([False], codes[period:] == codes[:-period], [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            times = (end - first) // period + 1
            if times > 1 and period * (times - 1) > saved:
                saved = period * (times - 1)
                spare = (end - first) % period
                starts = range(first, first + spare + 1)
                best = (
                    next((s for s in starts if codes[s] == 0 and (s == 0 or codes[s - 1] != 0)), first),
                    period,
                    times,
                )
    return best


def _is_loop(node: Node) -> bool:
    """Return whether a node is a repetition of more than one step."""
    return isinstance(node, Repeat) and not (len(node.body) == 1 and _is_step(node.body[0]))


def _is_step(node: Node) -> bool:
    return isinstance(node, str) and " to " not in node


def _phrase(node: Node) -> str:
    """Return a node on one line."""
    if isinstance(node, str):
        return node
    if not _is_loop(node):
        (step,) = map(str, node.body)
        return f"{node.times} rows{step[3:]}" if step.startswith(_ROW) else f"{node.times} {step}"
    return f"{node.times} times ({', '.join(map(_phrase, node.body))})"


def lines(nodes: Sequence[Node], inline: int = 0, indent: str = "") -> list[str]:
    """Return nodes as lines: each loop has its own, with a body indented where it is long; the rest flows.

    Loops of at most `inline` letters flow with the rest.
    """
    result: list[str] = []
    line = ""
    for node in nodes:
        phrase = _phrase(node)
        if isinstance(node, Repeat) and _is_loop(node) and len(phrase) > inline:
            if line:
                result.append(line)
                line = ""
            head = f"{indent}{node.times} times: "
            inside = ", ".join(map(_phrase, node.body))
            if len(head) + len(inside) <= _WIDTH:
                result.append(head + inside)
            else:
                result += [head.rstrip(), *lines(node.body, inline, indent + _INDENT)]
            continue
        if line and len(line) + len(phrase) + 2 > _WIDTH:
            result.append(line + ",")
            line = ""
        line = f"{line}, {phrase}" if line else indent + phrase
    return [*result, line] if line else result
