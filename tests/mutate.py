"""The importer under fire: `python -m tests.mutate --count 200000 --seed 0`.

Takes models of all operators and the shared ones, changes them, with an eye for their structure or blindly, and reads
them in processes that may take 1 GB and 10 seconds a model. The answer has to be a checked graph, or an MnetError of
one sentence; a graph then has to run in the golden model. Whatever else happens is reported, with its number:
`--only NUMBER` shows it again, `--save FILE` keeps the model.
"""

import argparse
import math
import multiprocessing
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import tflite as schema
from hypothesis import HealthCheck, Phase, given, settings

from codegen.simplify import simplify
from mnet import golden
from mnet.errors import MnetError
from mnet.oracle import TFLM
from mnet.readers import READERS
from mnet.resources import shared_folder
from mnet.tflite import parse_model
from tests.strategies import KINDS, MOVES, graphs_with_many_ends, small_graphs
from tests.writer import serialise, with_edges

MEMORY_BYTES = 1 << 30
SECONDS = 10
_MOST_VALUES = 1 << 16  # of a graph that is run
_NUMBERS = (0, 1, 2, 3, 4, -1, -2, 5, 127, 128, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, -(1 << 31))
_FLOATS = (0.0, 1.0, -1.0, 1 / 256, 1e-45, 1e-38, 1e-10, 3e38, math.inf, -math.inf, math.nan)
_KINDS = [number for name, number in vars(schema.BuiltinOperator).items() if name in READERS or name == "DEQUANTIZE"]

Attempt = Callable[[bytes], str]


def corpus() -> list[bytes]:
    """Return the files to start from: the same on every call."""
    files: list[bytes] = []
    kinds = (*KINDS, *MOVES, "sum", "arg_max")

    quick: dict[str, Any] = {"derandomize": True, "database": None, "deadline": None, "phases": [Phase.generate]}
    quick["suppress_health_check"] = list(HealthCheck)

    @settings(max_examples=200, **quick)
    @given(graphs_with_many_ends(kinds=kinds, most_ops=5))
    def draw(graph: Any) -> None:
        files.append(serialise(graph))

    draw()
    for kind in kinds:

        @settings(**{**quick, "max_examples": 6})
        @given(small_graphs(kinds=(kind,), most_ops=2))
        def draw_one(graph: Any) -> None:
            files.append(serialise(graph))

        draw_one()
    files = list(dict.fromkeys(files))
    files += [with_edges(data, *ends) for data, ends in zip(files[::10], _edges(), strict=False)]
    folder = shared_folder()
    return files + [path.read_bytes() for path in sorted((folder / "models").glob("*.tflite"))] if folder else files


def _edges() -> Iterator[tuple[str, str]]:
    while True:
        yield from (("float32", "float32"), ("uint8", "uint8"), ("int8", "float32"), ("uint8", "int8"))


def mutant(files: Sequence[bytes], seed: int, number: int) -> bytes:
    """Return the file that a number stands for."""
    chance = random.Random(f"{seed}/{number}")
    large = [data for data in files if len(data) > 1 << 16]
    small = [data for data in files if len(data) <= 1 << 16]
    data = chance.choice(large if large and chance.random() < 0.02 else small)
    return damaged(data, chance) if chance.random() < 0.4 else rearranged(data, chance)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return `data` cut, shortened, lengthened or with bytes, or whole words, changed."""
    made, length = bytearray(data), len(data)
    at = chance.randrange(length)
    match chance.randrange(8):
        case 0:
            del made[at:]
        case 1:
            del made[at : at + chance.choice((1, 2, 4, 100))]
        case 2:
            made[at:at] = chance.randbytes(chance.choice((1, 4, 16)))
        case 3 | 4:
            for _ in range(chance.choice((1, 2, 5, 40))):
                made[chance.randrange(length)] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        case _:
            for _ in range(chance.choice((1, 2, 5))):
                at = chance.randrange(length // 4) * 4
                word = chance.choice(
                    (0, 1, 2**31 - 1, 2**31, 2**32 - 1, chance.randrange(length), chance.getrandbits(32))
                )
                made[at : at + 4] = word.to_bytes(4, "little")
    return bytes(made)


def rearranged(data: bytes, chance: random.Random) -> bytes:
    """Return a well-formed file of which some fields have other values."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as objects

    model = objects.ModelT.InitFromPackedBuf(data, 0)
    try:
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            change = chance.choice(_CHANGES)
            change(model, chance)
        builder = flatbuffers.Builder(len(data))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
    except Exception:  # nothing of the kind is left to change, or the format has no room for the value
        return damaged(data, chance)


def _other_list(values: Any, chance: random.Random, most: int) -> list[int]:
    """Return a list of numbers with one more, one less, two exchanged or one changed."""
    made = [int(value) for value in values] if values is not None else []
    match chance.randrange(5):
        case 0:
            made.insert(chance.randint(0, len(made)), chance.choice(_NUMBERS))
        case 1 if made:
            made.pop(chance.randrange(len(made)))
        case 2 if len(made) > 1:
            first, second = chance.sample(range(len(made)), 2)
            made[first], made[second] = made[second], made[first]
        case 3:
            made = [chance.randrange(most) for _ in range(chance.choice((0, 1, 2, 3, 5)))]
        case _ if made:
            made[chance.randrange(len(made))] = chance.choice((*_NUMBERS, chance.randrange(most)))
    return made


def _change_tensor(model: Any, chance: random.Random) -> None:
    tensor = chance.choice(model.subgraphs[0].tensors)
    quantization = tensor.quantization
    match chance.randrange(8):
        case 0 | 1:
            tensor.shape = _other_list(tensor.shape, chance, 8)
        case 2:
            tensor.type = chance.randrange(20)
        case 3:
            tensor.buffer = chance.randrange(len(model.buffers) + 1)
        case 4 | 5 if quantization and quantization.scale is not None:
            scales = np.array(quantization.scale, np.float32)
            if len(scales):
                scales[chance.randrange(len(scales))] = chance.choice(
                    (*_FLOATS, scales[0] * chance.choice((1e-6, 0.5, 1e6)))
                )
            quantization.scale = scales[: chance.choice((None, None, 1, 0))]
        case 6 if quantization and quantization.zeroPoint is not None:
            points = np.array(quantization.zeroPoint, np.int64)
            points[: chance.choice((1, 1, 2))] = chance.choice((*_NUMBERS, -128, 127, 1 << 62))
            quantization.zeroPoint = points[: chance.choice((None, None, 1, 0))]
            quantization.quantizedDimension = chance.choice((0, 0, 1, 3, -1, 1 << 30))
        case _:
            tensor.quantization = chance.choice((None, chance.choice(model.subgraphs[0].tensors).quantization))
            tensor.name = chance.choice((tensor.name, b"", b"\xff\xfe", b"a" * 5000, b"\n", None))


def _change_operator(model: Any, chance: random.Random) -> None:
    (subgraph, *_) = model.subgraphs
    operators = subgraph.operators
    operator = chance.choice(operators)
    tensors = len(subgraph.tensors)
    match chance.randrange(8):
        case 0 | 1:
            operator.inputs = _other_list(operator.inputs, chance, tensors + 1)
        case 2:
            operator.outputs = _other_list(operator.outputs, chance, tensors + 1)
        case 3:
            code = model.operatorCodes[operator.opcodeIndex]
            code.builtinCode = code.deprecatedBuiltinCode = chance.choice((*_KINDS, chance.randrange(210)))
        case 4 | 5 if operator.builtinOptions is not None:
            names = [name for name in vars(operator.builtinOptions)]
            for name in chance.sample(names, min(len(names), 2)):
                old = getattr(operator.builtinOptions, name)
                if isinstance(old, bool):
                    setattr(operator.builtinOptions, name, not old)
                elif isinstance(old, float):
                    setattr(operator.builtinOptions, name, chance.choice((*_FLOATS, 2.5)))
                elif isinstance(old, int):
                    setattr(operator.builtinOptions, name, chance.choice(_NUMBERS))
        case 6:
            other = chance.choice(operators)
            operator.builtinOptions, operator.builtinOptionsType = other.builtinOptions, other.builtinOptionsType
        case _:
            operators.insert(chance.randint(0, len(operators)), operators.pop(chance.randrange(len(operators))))


def _change_constant(model: Any, chance: random.Random) -> None:
    """Change what an integer constant holds (axes, amounts, sizes), or its length; or a byte of any constant."""
    buffers = [buffer for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
    if not buffers:
        return
    integers = [buffer for buffer in buffers if len(buffer.data) % 4 == 0 and len(buffer.data) <= 64]
    buffer = chance.choice(integers if integers and chance.random() < 0.8 else buffers)
    data = np.array(buffer.data, np.uint8)
    if len(data) % 4 == 0 and chance.random() < 0.7:
        values = data.view("<i4").copy()
        values[chance.randrange(len(values))] = chance.choice(_NUMBERS)
        data = values.view(np.uint8)
    elif chance.random() < 0.5:
        data = data[: chance.randrange(len(data))]
    else:
        data[chance.randrange(len(data))] = chance.randrange(256)
    buffer.data = data


def _change_model(model: Any, chance: random.Random) -> None:
    (subgraph, *_) = model.subgraphs
    match chance.randrange(5):
        case 0:
            subgraph.inputs = _other_list(subgraph.inputs, chance, len(subgraph.tensors) + 1)
        case 1:
            subgraph.outputs = _other_list(subgraph.outputs, chance, len(subgraph.tensors) + 1)
        case 2:
            subgraph.operators = subgraph.operators[: chance.randrange(len(subgraph.operators) + 1)]
        case 3:
            model.subgraphs = [subgraph] * chance.choice((0, 1, 2))
        case _:
            subgraph.operators = subgraph.operators * chance.choice((2, 50))


def attempt(data: bytes) -> str:
    """Return "" for a graph that runs or a sentence; else what happened."""
    try:
        graph = parse_model(data, "net.tflite")
    except MnetError as error:
        text = str(error)
        return "" if text.endswith(".") and "\n" not in text else f"no sentence: {text!r}"
    except Exception:
        return traceback.format_exc()
    if sum(math.prod(tensor.shape) for tensor in graph.tensors.values()) > _MOST_VALUES:
        return ""
    try:
        simple = simplify(graph)
    except Exception:
        return traceback.format_exc()
    try:
        inputs = {name: np.full((1, *graph.tensors[name].shape), 100, np.int8) for name in graph.inputs}
        whole, less = golden.run(graph, TFLM, inputs), golden.run(simple, TFLM, inputs)
    except MnetError:  # TFLM has no such operator
        return ""
    except Exception:
        return traceback.format_exc()
    for name, other in zip(graph.outputs, simple.outputs, strict=True):
        if whole[name].tobytes() != less[other].tobytes():
            return f"simplify changes {name}"
    return ""


_CHANGES = (
    _change_tensor,
    _change_tensor,
    _change_operator,
    _change_operator,
    _change_constant,
    _change_model,
)


@dataclass(frozen=True)
class Finding:
    """What went wrong with one mutant."""

    number: int
    what: str


def _limit() -> None:
    """Let this process have MEMORY_BYTES more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class _TooLong(BaseException):
    """Not an Exception, so that nobody who is tried catches it."""


def _work(numbers: Sequence[int], seed: int, files: Sequence[bytes], attempt: Attempt, answers: Connection) -> None:
    """Try mutants one by one, and say before each which it is, after it how it went."""

    def stop(signum: int, frame: object) -> None:
        raise _TooLong

    signal.signal(signal.SIGALRM, stop)
    _limit()
    for number in numbers:
        data = mutant(files, seed, number)
        answers.send((number, None))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            what = attempt(data)
        except _TooLong:
            what = f"takes more than {SECONDS} s: {''.join(traceback.format_exc().splitlines(True)[-8:])}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.send((number, what))


def fire(
    count: int,
    seed: int,
    files: Sequence[bytes],
    attempt: Attempt = attempt,
    report: Callable[[int], None] = lambda number: None,
) -> list[Finding]:
    """Try mutants 0 to `count` - 1 in a process of its own, which is replaced when it dies; return what went wrong."""
    findings: list[Finding] = []
    begin = 0
    while begin < count:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        worker = multiprocessing.get_context("fork").Process(
            target=_work, args=(range(begin, count), seed, files, attempt, theirs)
        )
        worker.start()
        theirs.close()
        begin = _listen(ours, worker, begin, findings, report)
        if begin < count or worker.is_alive():
            worker.kill()
        worker.join()
    return findings


def _listen(
    answers: Connection, worker: Any, begin: int, findings: list[Finding], report: Callable[[int], None]
) -> int:
    """Collect the answers of one process until it ends or hangs; return the number to go on with."""
    current = begin
    while True:
        try:
            if not answers.poll(3 * SECONDS):
                findings.append(Finding(current, f"hangs for {3 * SECONDS} s"))
                return current + 1
            number, what = answers.recv()
        except EOFError:
            worker.join()
            if worker.exitcode == 0:
                return current
            findings.append(Finding(current, f"the process died: exit code {worker.exitcode}"))
            return current + 1
        if what is None:
            current = number
            continue
        current = number + 1
        if what:
            findings.append(Finding(number, what))
        report(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args(arguments)
    files = corpus()
    if options.only is not None:
        data = mutant(files, options.seed, options.only)
        if options.save:
            options.save.write_bytes(data)
        print(attempt(data) or "fine")
        return 0
    began = time.monotonic()

    def report(number: int) -> None:
        if (number + 1) % 5000 == 0:
            print(f"{number + 1:,} in {time.monotonic() - began:,.0f} s", file=sys.stderr, flush=True)

    findings = fire(options.count, options.seed, files, report=report)
    for finding in findings:
        print(f"--- {finding.number}\n{finding.what}")
    print(f"{options.count:,} mutants of {len(files)} models, seed {options.seed}: {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
