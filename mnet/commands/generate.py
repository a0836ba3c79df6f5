"""`mnet codegen`: the generated folder, and what its user needs to know."""

from pathlib import Path

from codegen.emit import conversion
from codegen.front import stack_bytes
from mnet.commands.console import print_json
from mnet.errors import MnetError
from mnet.graph import numbered
from mnet.pipeline import Options, fits, prepare, write


def generate(model: Path, options: Options, labels: tuple[str, ...], out: Path, json_file: str | None) -> None:
    """Write the generated folder and print its figures.

    Raises:
        MnetError: the model is not read or planned, or `labels` are not as many as its classes.
    """
    prepared = prepare(model, options)
    if labels and not fits(prepared.source, labels):
        raise MnetError(f"--labels has {len(labels)} names, but no output of {model} has as many values.")
    write(prepared, out, labels)
    plan = prepared.plan
    constants = 4 * sum(map(len, plan.constants.values()))
    stack, graph = stack_bytes(plan), plan.graph
    ports = [
        (name, graph.tensors[tensor])
        for kind, tensors in (("input", graph.inputs), ("output", graph.outputs))
        for name, tensor in zip(numbered(kind, len(tensors)), tensors, strict=True)
    ]
    if json_file:
        figures = {
            "folder": str(out),
            "name": plan.graph.name,
            "target": plan.target.name,
            "oracle": plan.oracle.name,
            "input_mode": plan.input_mode,
            "arena_bytes": plan.arena_bytes,
            "stack_bytes": stack,
            "constant_bytes": constants,
            "outside": {name: tensor.outside for name, tensor in ports},
            "steps": sum(step >= 0 for step in plan.schedule),
            "files": sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()),
        }
        print_json(figures, json_file)
        return
    print(f"{out}: C for {plan.target.name}, the bits of {plan.oracle.name}, --input {plan.input_mode}")
    print(f"arena {plan.arena_bytes:,} B, stack at most {stack:,} B, packed weights and constants {constants:,} B")
    if plan.target.name == "cortex-m":
        print("compiles and gives these bits on every core from Cortex-M0 to M85; fast with -mcpu=cortex-m4 or better")
    elif plan.target.gcc:
        print(f"compile it with {' '.join(plan.target.gcc)} -O2")
    for name, tensor in ports:
        if tensor.outside != "int8":
            print(f"{name}: {tensor.outside} in the file, cut off; {conversion(tensor, name.startswith('input'))}")
    if prepared.labels and not labels and not fits(prepared.source, prepared.labels):
        print(f"labels.txt in {model} has {len(prepared.labels)} names, which fits no output: left out")
    print(f"prove it again: make -C {out} test")
