"""The small kernels in plain C: sums, against the oracle's arithmetic, on the host and emulated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codegen.call import Call
from codegen.layout import BYTES8, PLANAR16, WIDE8, WIDE16, Layout
from codegen.plain import add_pack, add_view, solve_add
from mnet.graph import Add, Graph
from mnet.oracle import LITERT, AddArithmetic, add, add_arithmetic
from tests.kernel_harness import Case, filled, needs_arm, needs_gcc, run_emulated, run_on_host, storage, tensor


def arithmetic(scales: tuple[float, float, float], zero_points: tuple[int, int, int]) -> AddArithmetic:
    tensors = {n: tensor(n, (1, 1, 1), z) for n, z in zip("abc", zero_points, strict=True)}
    for (name, value), scale in zip(tensors.items(), scales, strict=True):
        tensors[name] = type(value)(name, value.shape, float(np.float32(scale)), value.zero_point)
    op = Add("add", ("a", "b"), "c", (-128, 127))
    return add_arithmetic(op, Graph("net", tensors, (op,), ("a", "b"), ("c",), "0" * 16), LITERT)


def add_case(rng: np.random.Generator, **choice: Any) -> Case:
    """Draw a row of an Add whose two inputs lie in one buffer, one behind the other."""
    a, b, c = rng.uniform(0.02, 0.1, 3)
    x, y, z = (int(z) for z in rng.integers(-128, 128, 3))
    how = arithmetic((a, b, c), (x, y, z))
    if "how" in choice:
        how = choice["how"]
    shape = choice.get("shape", (1, int(rng.integers(1, 9)), int(rng.integers(1, 13))))
    layouts = choice.get("layouts") or [(WIDE16, WIDE8, BYTES8)[i] for i in rng.integers(0, 3, 2)]
    target: Layout = choice.get("target") or (WIDE16, WIDE8, BYTES8, PLANAR16)[rng.integers(4)]
    border = (0, 0, 0, 0) if target.planar else (0, 0, int(rng.integers(2)), 1)
    sources = tuple(
        storage(tensor(name, shape, z), layout)
        for name, z, layout in zip("ab", how.input_zero_points, layouts, strict=True)
    )
    values = [rng.integers(-128, 128, shape).astype(np.int8) for _ in sources]
    buffers = [filled(s, v, 0, 1, rng) for s, v in zip(sources, values, strict=True)]
    call = Call(
        Add("add", ("a", "b"), "c", how.activation),
        sources,
        storage(tensor("c", shape, how.zero_point), target, border),
        1,
        None,
        how,
    )
    view = add_view(call)
    return Case(
        call,
        view,
        "add",
        add_pack(call, view, 0),
        b"".join(buffers),
        (0, len(buffers[0])),
        0,
        add(values[0], values[1], how),
    )


@needs_gcc
@needs_arm
def test_sums_of_two_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    cases = [add_case(rng) for _ in range(40)]
    assert {"fast"} <= {case.view.form for case in cases}  # type: ignore[attr-defined]
    run_on_host(cases, tmp_path, ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all"))
    run_emulated(cases, tmp_path)


@needs_gcc
@needs_arm
def test_sums_without_the_fast_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen.plain.solve_add", lambda how: None)
    rng = np.random.default_rng(2)
    cases = [add_case(rng) for _ in range(20)]
    run_on_host(cases, tmp_path)
    run_emulated(cases, tmp_path)


@pytest.mark.parametrize("scales", [(0.05, 0.05, 0.1), (0.05, 0.05, 0.05), (0.1, 0.05, 0.15), (0.03, 0.07, 0.09)])
@pytest.mark.parametrize("zero_points", [(-128, -128, -128), (3, -5, 10), (127, -128, 0)])
def test_two_factors_stand_for_the_runtimes_roundings(
    scales: tuple[float, float, float], zero_points: tuple[int, int, int]
) -> None:
    how = arithmetic(scales, zero_points)
    solved = solve_add(how)
    assert solved is not None
    first, second, addend, shift = solved
    q = np.arange(-128, 128)
    sums = (q[:, None] + 128) * first + (q[None, :] + 128) * second + addend
    assert np.abs(sums).max() < 1 << 31
    stored = np.clip(sums >> shift, 0, 255)
    wanted = add(q.astype(np.int8)[:, None], q.astype(np.int8)[None, :], how)
    assert (np.clip(stored - 128, *how.activation) == wanted).all()
