"""Many random networks against a runtime, every tensor, from one command and a seed.

    python -m tests.random_networks --count 10000 --seed 0               golden(litert) against LiteRT's reference
    python -m tests.random_networks --count 1000 --seed 0 --oracle tflm  golden(tflm) against TFLM
    python -m tests.random_networks --count 500 --seed 0 --c             generated C under poison, too

The networks are those of `tests/strategies.py`. One that differs is shrunk by hypothesis and written as a .tflite file.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from mnet import golden
from mnet.graph import Graph, Int8Array
from mnet.litert_runtime import run_litert
from mnet.oracle import ORACLES
from mnet.pipeline import Options, prepare
from mnet.proof import prove
from mnet.tflite import parse_model
from mnet.tflm_runtime import run_tflm
from tests.strategies import graphs_with_many_ends, random_input, small_graphs
from tests.writer import serialise

_RUNTIMES = {"litert": run_litert, "tflm": run_tflm}


class Difference(AssertionError):
    """A network whose bits differ."""


def first_difference(graph: Graph, found: dict[str, Int8Array], expected: dict[str, Int8Array]) -> str:
    """Return a sentence on the first tensor that differs, in the order of the ops; "" where none does."""
    for op in graph.ops:
        wrong = found[op.output] != expected[op.output] if op.output in expected else np.zeros(1, bool)
        if wrong.any():
            place = tuple(int(index) for index in np.argwhere(wrong)[0])
            got, due = found[op.output][place], expected[op.output][place]
            return f"{type(op).__name__} {op.name}: at {place} golden has {got}, the runtime {due}"
    return ""


def compare(data: bytes, graph: Graph, inputs: Mapping[str, Int8Array], oracle: str, c: bool) -> None:
    """Raise Difference, with the place of a file that shows it, where golden model, runtime or C differ."""
    found = golden.run(graph, ORACLES[oracle], inputs)
    sentence = first_difference(graph, found, _RUNTIMES[oracle](data, graph, inputs))
    path = Path(tempfile.gettempdir()) / "mnet_difference.tflite"
    if not sentence and c:
        path.write_bytes(data)
        proof = prove(prepare(path, Options("cortex-m4", oracle=oracle)), inputs=inputs, cores=())
        sentence = "; ".join(f"{leg.name} {leg.status} {leg.reason}" for leg in proof.legs if leg.status != "equal")
    if sentence:
        path.write_bytes(data)
        raise Difference(f"{sentence}; see {path}")


@click.command()
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", "first_seed", type=int, default=0, show_default=True)
@click.option("--most-ops", type=click.IntRange(1), default=12, show_default=True)
@click.option("--inputs", type=click.IntRange(1), default=2, show_default=True, help="For each network.")
@click.option("--oracle", type=click.Choice(list(_RUNTIMES)), default="litert", show_default=True)
@click.option("--c", is_flag=True, help="Run the generated C on this computer, too.")
def main(count: int, first_seed: int, most_ops: int, inputs: int, oracle: str, c: bool) -> None:
    """Compare `count` random networks of 1 to `most_ops` ops."""
    seen: Counter[str] = Counter()
    values, began = 0, time.monotonic()

    @seed(first_seed)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(small_graphs(most_ops=most_ops) | graphs_with_many_ends(most_ops=most_ops), st.integers(0, 1000))
    def every_network(drawn: Graph, number: int) -> None:
        nonlocal values
        data = serialise(drawn)
        graph = parse_model(data, "drawn.tflite")
        compare(data, graph, random_input(graph, number, inputs), oracle, c)
        seen.update(type(op).__name__ for op in graph.ops)
        seen["networks"] += 1
        values += inputs * sum(int(np.prod(tensor.shape)) for tensor in graph.tensors.values())

    every_network()
    ops = ", ".join(f"{name} {number:,}" for name, number in sorted(seen.items()) if name != "networks")
    print(f"{seen['networks']:,} networks, {values:,} values compared with {oracle}, 0 differ ({ops})")
    print(f"seed {first_seed}, 1 to {most_ops} ops, {inputs} inputs each, {time.monotonic() - began:,.0f} s")


if __name__ == "__main__":
    main()
