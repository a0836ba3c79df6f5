"""Addresses by a constraint solver, where it is installed (`pip install mnet-mcu[solver]`): a few percent fewer bytes.

Rows that lie apart are some hundred rectangles of known place in time; their addresses are a packing problem that
first-fit loses up to 8 % on. CP-SAT (Google OR-tools) with one worker is deterministic, and its limit is counted in its
own work, not in seconds.

It runs in a process of its own: OR-tools and TensorFlow bring libraries that do not get on in one.
"""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict

from codegen.memory import Box, live_bytes

_WORK = 0.25  # deterministic time, about 10 seconds: what has addresses was found within a quarter of it


def pack(boxes: Sequence[Box], most_bytes: int) -> dict[str, int] | None:
    """Return addresses of `boxes` within `most_bytes`; None where there are none, or none were found, or no solver."""
    ends = [box.size if box.fixed is None else box.fixed + box.size for box in boxes]
    if importlib.util.find_spec("ortools") is None or max(live_bytes(boxes), *ends) > most_bytes:
        return None
    task = json.dumps({"most_bytes": most_bytes, "boxes": [asdict(box) for box in boxes]})
    command = [sys.executable, "-m", "codegen.packing"]
    done = subprocess.run(command, input=task, capture_output=True, text=True)
    addresses: dict[str, int] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return addresses


def _solve(boxes: Sequence[Box], most_bytes: int) -> dict[str, int] | None:
    from ortools.sat.python import cp_model

    unit = math.gcd(4 * (most_bytes // 4), *(box.size for box in boxes), *(box.fixed or 0 for box in boxes))
    model = cp_model.CpModel()
    addresses, in_time, in_bytes = {}, [], []
    for box in sorted(boxes, key=lambda box: box.name):
        least, most = (0, most_bytes - box.size) if box.fixed is None else (box.fixed, box.fixed)
        addresses[box.name] = model.new_int_var(least // unit, most // unit, box.name)
        interval = model.new_fixed_size_interval_var(addresses[box.name], box.size // unit, "")
        for first, last in box.spans:
            in_time.append(model.new_fixed_size_interval_var(first, last - first + 1, ""))
            in_bytes.append(interval)
    model.add_no_overlap_2d(in_time, in_bytes)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = _WORK
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return {name: unit * solver.value(address) for name, address in addresses.items()}


def _main() -> None:
    task = json.load(sys.stdin)
    boxes = [Box(**{**box, "spans": tuple(map(tuple, box["spans"]))}) for box in task["boxes"]]
    json.dump(_solve(boxes, task["most_bytes"]), sys.stdout)


if __name__ == "__main__":
    _main()
