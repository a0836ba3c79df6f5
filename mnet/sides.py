"""Who can make all tensors of a model for one input: the golden model, other people's runtimes, generated C."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from codegen.targets import Target, target
from mnet import golden
from mnet.errors import MnetError
from mnet.graph import Graph, Int8Array, Int32Array
from mnet.oracle import ORACLES
from mnet.pipeline import Options, Prepared, prepare, write
from mnet.proof import core_program, host_program
from mnet.runtimes import RUNTIMES
from mnet.tflite import read_model
from mnet.trace import collect
from mnet.verify import input_bytes

HOST, EMULATED = "host", "emulated"
_GOLDEN = {f"golden-{name}": oracle for name, oracle in ORACLES.items()}
SIDES = (*_GOLDEN, *RUNTIMES, HOST, EMULATED)


@dataclass(frozen=True, eq=False)
class Seen:
    """A tensor as one side made it."""

    values: Int32Array  # [height, width, channels], quantized
    known: npt.NDArray[np.bool_]  # [channels]; False: simplification dropped the channel, as nobody reads it


@dataclass(frozen=True, eq=False)
class Side:
    """What one side made of an input."""

    name: str  # one of SIDES
    title: str  # who that is, in words
    rounding: str  # whose rounding it follows: an oracle's name, or a runtime's
    tensors: Mapping[str, Seen]  # by name; a tensor that is absent was folded away


def make_side(name: str, path: Path, options: Options, one: Mapping[str, Int8Array]) -> Side:
    """Let one side make all tensors.

    Args:
        name: one of SIDES.
        path: of the model.
        options: of generated code; the others take no notice of them.
        one: of each input, by the tensor's name: int8 [1, height, width, channels].

    Raises:
        MnetError: no such side, no such core, a model that is not read or planned, or a tool that is missing or fails.
    """
    if name in (HOST, EMULATED):
        return _of_program(name, prepare(path, options), one)
    graph = read_model(path)
    if name in _GOLDEN:
        oracle = _GOLDEN[name]
        return Side(name, f"golden model, oracle {oracle.name}", oracle.name, _whole(golden.run(graph, oracle, one)))
    if name in RUNTIMES:
        runtime = RUNTIMES[name]
        return Side(name, runtime.title, name, _whole(runtime.run(path, graph, one)))
    raise MnetError(f"nobody called {name!r} can be traced; there are {', '.join(SIDES)}")


def _whole(tensors: Mapping[str, Int8Array]) -> dict[str, Seen]:
    return {
        name: Seen(values[0].astype(np.int32), np.ones(values.shape[-1], np.bool_)) for name, values in tensors.items()
    }


def _of_program(name: str, prepared: Prepared, one: Mapping[str, Int8Array]) -> Side:
    with tempfile.TemporaryDirectory(prefix="mnet-") as place:
        folder = Path(place) / prepared.graph.name
        write(prepared, folder)
        if name == HOST:
            title, program = host_program(folder)
        else:
            title, program = core_program(folder, core_of(prepared.plan.target))
        made, answers = collect(prepared.plan, program(input_bytes(prepared.plan.graph, one)).trace)
    return Side(name, title, prepared.plan.oracle.name, unfolded(prepared.source, prepared.graph, made, answers))


def core_of(planned: Target) -> Target:
    """Return the first core that a plan's target runs on.

    Raises:
        MnetError: it is the host.
    """
    if not planned.runs_on:
        raise MnetError("a plan for the host runs on no core: name one, --target cortex-m4.")
    return target(planned.runs_on[0])


def unfolded(
    source: Graph, simplified: Graph, made: Mapping[str, Int32Array], answers: Mapping[str, Int32Array]
) -> dict[str, Seen]:
    """Return what a program made, as tensors of the file.

    Channels that simplification found constant are given back; those that it dropped are not known.

    Args:
        source: the graph as it stands in the file.
        simplified: the graph that was planned.
        made: its tensors, as far as the program makes them; int32 [height, width, channels that are left].
        answers: what the caller gets, by name of the planned graph's outputs.
    """
    tensors = {}
    planned = dict(zip(source.outputs, simplified.outputs, strict=True))
    for name, tensor in source.tensors.items():
        if name in planned:
            tensors[name] = Seen(answers[planned[name]].reshape(tensor.shape), np.ones(tensor.shape[2], np.bool_))
            continue
        left = simplified.tensors[name]
        if name not in made:
            continue
        values, known = np.zeros(tensor.shape, np.int32), np.zeros(tensor.shape[2], np.bool_)
        for channel, value in left.constants:
            values[..., channel], known[channel] = value, True
        live = list(left.live or range(tensor.shape[2]))
        values[..., live], known[live] = made[name], True
        tensors[name] = Seen(values, known)
    return tensors
