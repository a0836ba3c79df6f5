"""Addresses by a constraint solver, where it is installed (`pip install mnet-mcu[solver]`): a few percent fewer bytes.

Rows that lie apart are some hundred rectangles of known place in time; their addresses are a packing problem that
first-fit loses up to 8 % on. CP-SAT (Google OR-tools) with one worker is deterministic, and its limit is counted in its
own work, not in seconds.
"""

import math
from collections.abc import Sequence

from codegen.memory import Box, live_bytes

_WORK = 1.0  # deterministic time: about 10 seconds


def pack(boxes: Sequence[Box], most_bytes: int) -> dict[str, int] | None:
    """Return addresses of `boxes` within `most_bytes`; None where there are none, or none were found, or no solver."""
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return None
    if live_bytes(boxes) > most_bytes:
        return None
    unit = math.gcd(4 * (most_bytes // 4), *(box.size for box in boxes), *(box.fixed or 0 for box in boxes))
    model = cp_model.CpModel()
    addresses, in_time, in_bytes = {}, [], []
    for box in sorted(boxes, key=lambda box: box.name):
        least, most = (0, most_bytes - box.size) if box.fixed is None else (box.fixed, box.fixed)
        if most < least or (box.fixed is not None and box.fixed + box.size > most_bytes):
            return None
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
