"""Run TFLM, tflite-micro's portable kernels, in a process of its own, and hand back every tensor that a Graph knows."""

import importlib.util
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mnet.edges import from_quantized
from mnet.errors import MissingToolError, ToolError
from mnet.graph import Graph, Int8Array

_WORKER = Path(__file__).with_name("tflm_worker.py")


def arena_bytes(graph: Graph) -> int:
    """Return an arena in which every tensor has a place of its own; what is not touched costs no memory.

    A scratch buffer of int32 values is at most as large as its operator's tensors; 64 MiB are for all else.
    """
    return (64 << 20) + 8 * sum(math.prod(tensor.shape) for tensor in graph.tensors.values())


def run_tflm(model: Path | bytes, graph: Graph, inputs: Mapping[str, Int8Array]) -> dict[str, Int8Array]:
    """Return every activation of `graph` as TFLM computes it, by tensor name.

    Args:
        model: the .tflite file that `graph` was read from, or its bytes.
        graph: names, shapes and indices of the tensors.
        inputs: int8 [n, height, width, channels] of each of the graph's inputs, by tensor name.

    Raises:
        MissingToolError: the package tflite-micro is not installed.
        ToolError: it refuses the model, or dies of it.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise MissingToolError("TFLM is missing: pip install 'mnet-mcu[tflm]' (Linux on x86-64)")
    known = {name: tensor for name, tensor in graph.tensors.items() if tensor.index >= 0}
    with tempfile.TemporaryDirectory(prefix="mnet-") as place:
        folder = Path(place)
        (folder / "model.tflite").write_bytes(model if isinstance(model, bytes) else model.read_bytes())
        indices = np.array([tensor.index for tensor in known.values()], np.int64)
        given: dict[str, Any] = {
            f"input_{number}": from_quantized(graph.tensors[name], inputs[name])
            for number, name in enumerate(graph.inputs)
        }
        given |= {"tensors": indices, "arena_bytes": np.int64(arena_bytes(graph))}
        np.savez(folder / "request.npz", **given)
        # -P: beside the worker lie modules of ours that have the names of Python's.
        command = [sys.executable, "-P", str(_WORKER), place]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise ToolError(f"TFLM {_refusal(done.returncode)} {graph.name}: {_said(done.stderr)}")
        count = len(inputs[graph.inputs[0]])
        with np.load(folder / "tensors.npz") as found:
            return {name: found[str(tensor.index)].reshape(count, *tensor.shape) for name, tensor in known.items()}


def _refusal(code: int) -> str:
    return "refuses" if code > 0 else f"dies (signal {-code}) of"


def _said(text: str) -> str:
    """Return the last lines that TFLM printed, as one."""
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "it does not say why"
