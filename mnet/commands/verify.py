"""`mnet verify`: the table of legs, the first byte that differs, and the command that shows it again."""

import difflib
from dataclasses import asdict, replace
from pathlib import Path

from mnet.commands.console import Column, print_json, print_table, progress
from mnet.errors import ModelError
from mnet.graph import Graph
from mnet.pipeline import Options, Prepared, prepare
from mnet.proof import Proof, prove
from mnet.runtimes import runtime_of
from mnet.verify import Leg, Mismatch, output_labels

COLUMNS = (
    Column("leg"),
    Column("inputs", True),
    Column("tensors", True),
    Column("values compared", True),
    Column("differing", True),
    Column("status"),
)


def verify(
    model: Path,
    options: Options,
    inputs: int,
    emulated: int,
    seed: int,
    layer: str | None,
    allow_missing: bool,
    json_file: str | None,
    board: str | None = None,
) -> int:
    """Run every leg, print what came out, and return the exit code."""
    prepared = prepare(model, options)
    only = tensors_of(prepared.source, layer) if layer else frozenset[str]()
    with progress() as report:
        proof = prove(prepared, inputs, min(emulated, inputs), seed, progress=report, board=board)
    if only:
        narrowed = (leg.only(only) for leg in proof.legs)
        proof = replace(proof, legs=tuple(leg for leg in narrowed if leg.values or leg.reason))
    code = 0 if allow_missing and proof.exit_code == 3 else proof.exit_code
    if json_file:
        print_json(asdict(proof) | {"exit_code": code}, json_file)
        return code
    what = f"{model.name} for {proof.target}, oracle {proof.oracle}" + (f", only {layer}" if layer else "")
    print_table(COLUMNS, [row(leg) for leg in proof.legs], what)
    for leg in proof.legs:
        if leg.reason:
            print(f"\n{leg.name}, {leg.status}: {leg.reason}")
        for mismatch in leg.mismatches:
            print("\n" + explain(prepared, proof, leg, mismatch))
    if proof.fit:
        print(f"\n{proof.fit}")
    if only and all(not leg.values or leg.name == runtime_of(prepared.plan.oracle).title for leg in proof.legs):
        print(f"\nNo C makes {layer}: simplification dropped it (--no-simplify keeps it).")
    elif code == 0:
        print("\nEqual in every bit" + ("." if proof.exit_code == 0 else ", as far as it was run."))
    elif code == 3:
        print("\nA leg was not run: install what it lacks (`mnet doctor`), or say --allow-missing.")
    return code


def row(leg: Leg) -> tuple[object, ...]:
    """Return the leg as a row under COLUMNS."""
    if leg.status in ("equal", "differs"):
        return (leg.name, leg.inputs, leg.tensors, leg.values, leg.differing, leg.status)
    return (leg.name, None, None, None, None, leg.status)


def tensors_of(graph: Graph, layer: str) -> frozenset[str]:
    """Return the tensors that `layer` means: what an op of that name makes, or a tensor of that name.

    Raises:
        ModelError: the model has neither.
    """
    found = {op.output for op in graph.ops if layer in (op.name, op.output)}
    labels = dict(zip(graph.outputs, output_labels(graph), strict=True))
    found |= {layer} & {*graph.inputs, *labels.values()}
    found |= {labels[name] for name in found & labels.keys()}  # the copies that the caller gets
    if not found:
        names = [op.name for op in graph.ops]
        near = difflib.get_close_matches(layer, names, 3) or names[:10]
        raise ModelError(f"{graph.name} has no layer {layer!r}; it has {', '.join(near)} ... (`mnet show` lists them).")
    return frozenset(found)


def explain(prepared: Prepared, proof: Proof, leg: Leg, mismatch: Mismatch) -> str:
    """Say where a tensor differs first, what was got and expected, and how to see it again."""
    layer = next((op.name for op in prepared.source.ops if op.output == mismatch.tensor), mismatch.tensor)
    arithmetic = f"; {mismatch.arithmetic}" if mismatch.arithmetic else ""
    inputs = mismatch.input + 1
    again = [f"mnet verify {prepared.path} --target {proof.target} --layer {layer}"]
    options, default = prepared.options, Options()
    again += [f"--oracle {options.oracle}"] * (options.oracle != default.oracle)
    again += [f"--input {options.input_mode}"] * (options.input_mode != default.input_mode)
    again += ["--no-simplify"] * (not options.simplify)
    again += [f"--seed {proof.seed} --inputs {inputs} --emulated {inputs}"]
    return (
        f"{layer}: {mismatch.differing:,} of {mismatch.values:,} values differ "
        f"({leg.name}, against golden {proof.oracle})\n"
        f"  first in input {mismatch.input} at row {mismatch.row}, column {mismatch.column}, "
        f"channel {mismatch.channel}: got {mismatch.got}, expected {mismatch.expected}{arithmetic}\n"
        f"  again: {' '.join(again)}"
    )
