"""`mnet report`: what there is to know of a model as C, on one page of HTML that needs nothing else.

`measure` does the work, `html` prints it; the page is `templates/report/report.html.j2`. The same model, options and
tools give the same bytes: no date, no path. Whatever comes from the model is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2

from codegen.certificate import Certificate, certificate
from codegen.emit import Origin, emit
from codegen.plan import Plan, PlannedOp
from codegen.planner import Request
from codegen.schedule_words import words_of
from codegen.targets import Target
from mnet import __version__, toolchain
from mnet.bars import NO_FAMILY, Bar, bar_chart, family_colours
from mnet.commands.verify import explain
from mnet.errors import ToolError
from mnet.front_picture import front_svg
from mnet.graph import Graph, Tensor, macs_of, numbered, weights_of
from mnet.picture import maker_of, memory_svg, peak_of
from mnet.pipeline import Prepared, command_of
from mnet.plan_cache import front_if_cached
from mnet.profile import LayerProfile, ModelProfile, profile_model
from mnet.proof import Progress, Proof, prove
from mnet.resources import folder
from mnet.svg import ascii_only

# Clocks of common microcontrollers, by core; only the milliseconds in the page depend on them.
CLOCKS_MHZ: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "cortex-m0": (16, 48),
        "cortex-m0plus": (16, 64, 133),
        "cortex-m3": (24, 72, 120),
        "cortex-m4": (64, 80, 120, 168),
        "cortex-m7": (216, 400, 480),
        "cortex-m33": (64, 110, 160),
        "cortex-m55": (160, 400),
    }
)
RANDOM_INPUTS = "noise, smooth, saturated and constant images in turn"
_AT_PEAK = 6  # tensors that are named there
_PURPOSE = {  # of each generated file, by its name behind the model's
    ".h": "what your code includes: sizes, scales, functions",
    ".c": "kernels, tables of the schedule, the runner",
    "_weights.c": "packed weights and constants; they stay in flash",
    "_weights.h": "their declarations",
    "_instructions.h": "each DSP instruction, and the same in C for cores that lack it",
    ".plan.json": "what runs when and where rows lie, for tools",
    "test/": "proves the folder with a C compiler and nothing else: make test",
    "Makefile": "make test",
}


@dataclass(frozen=True, eq=False)
class Report:
    """What the page prints."""

    prepared: Prepared
    profile: ModelProfile | None
    not_profiled: str  # why, where profile is None
    proof: Proof
    clocks_mhz: tuple[int, ...]
    inputs: str = RANDOM_INPUTS  # of the proof, in words

    @property
    def exit_code(self) -> int:
        """Return 0 if all is well, 1 if bits differ, 3 if something could not be run."""
        return self.proof.exit_code or (0 if self.profile else 3)


@dataclass(frozen=True)
class LayerRow:
    """A row of the table of layers; what was not measured is None."""

    name: str
    kernel: str
    colour: str
    shape: str  # of the output
    layouts: str  # of the inputs and the output
    kept: str  # rows of the output that are in memory at a time
    calls: int | None
    macs: int | None
    file_macs: int | None
    instructions: int | None
    cycles: int | None
    share: float  # percent of the cycles, or of the multiply-adds
    bar: float  # the same, percent of the largest
    cycles_per_mac: float | None
    code_bytes: int | None
    shares_code_with: str
    constant_bytes: int | None


@dataclass(frozen=True)
class Amount:
    """A bar among others in words."""

    what: str
    bytes: int
    bar: float  # percent of the largest
    more: str


def measure(
    prepared: Prepared,
    inputs: int,
    emulated: int,
    seed: int,
    wait_states: int = 0,
    clocks_mhz: Sequence[int] = (),
    progress: Progress = lambda leg, done, total: None,
) -> Report:
    """Verify and profile a model.

    Args:
        prepared: the model and its plan.
        inputs: random ones for LiteRT and this computer.
        emulated: how many of them each emulated core runs.
        seed: of the inputs.
        wait_states: of the flash, for a second line of cycles.
        clocks_mhz: to give milliseconds for; by default what is common for the core.
        progress: called as inputs are done.
    """
    proof = prove(prepared, inputs, min(emulated, inputs), seed, progress=progress)
    try:
        profile, reason = profile_model(prepared, wait_states), ""
    except ToolError as error:
        profile, reason = None, str(error)
    return Report(prepared, profile, reason, proof, tuple(clocks_mhz) or clocks_of(prepared.plan.target))


def clocks_of(target: Target) -> tuple[int, ...]:
    """Return clocks in MHz that are common for a core."""
    return CLOCKS_MHZ.get(target.name) or CLOCKS_MHZ.get(target.core) or CLOCKS_MHZ["cortex-m4"]


def html(report: Report) -> str:
    """Return the page, in ASCII."""
    environment = _environment(autoescape=True)
    return ascii_only(environment.get_template("report/report.html.j2").render(_view(report)))


def _environment(autoescape: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder("templates")),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["count"] = _count
    environment.filters["by"] = _by
    return environment


def _count(value: int | float | None) -> str:
    """Return a number for people."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def _by(shape: Sequence[int]) -> str:
    return "\N{MULTIPLICATION SIGN}".join(map(str, shape))


def _view(report: Report) -> dict[str, Any]:
    """Return everything that the template prints."""
    prepared, plan, profile = report.prepared, report.prepared.plan, report.profile
    rows = layer_rows(report)
    families = [row.kernel for row in rows]
    return {
        "version": __version__,
        "model": prepared.path.name,
        "name": plan.graph.name,
        "NAME": plan.graph.name.upper(),
        "plan": plan,
        "options": prepared.options,
        "profile": profile,
        "not_profiled": report.not_profiled,
        "sources": _ports(prepared.source, "input", prepared.source.inputs),
        "targets": _ports(prepared.source, "output", prepared.source.outputs),
        "ops": len(prepared.source.ops),
        "kept_ops": len(prepared.graph.ops),
        "macs": sum(macs_of(prepared.graph, op) for op in prepared.graph.ops),
        "file_macs": sum(macs_of(prepared.source, op) for op in prepared.source.ops),
        "weights": sum(map(weights_of, prepared.graph.ops)),
        "file_weights": sum(map(weights_of, prepared.source.ops)),
        "constant_bytes": profile.constant_bytes if profile else 4 * sum(map(len, plan.constants.values())),
        "stack": _stack(profile),
        "times": _times(profile, report.clocks_mhz),
        "clocks_mhz": report.clocks_mhz,
        "rows": rows,
        "families": family_colours(families),
        "chart": _chart(rows, profile is not None),
        "memory": memory_svg(plan),
        "front": _front(report),
        "amounts": _amounts(plan, certificate(plan)),
        "certificate": certificate(plan),
        "peak_step": peak_of(plan)[0],
        "peak": _at_peak(plan),
        "steps": len(plan.schedule),
        "words": words_of(plan),
        "inputs": report.inputs,
        "legs": report.proof.legs,
        "exit_code": report.proof.exit_code,
        "compared": sum(leg.values for leg in report.proof.legs),
        "differing": sum(leg.differing for leg in report.proof.legs),
        "not_run": sum(leg.status == "not run" for leg in report.proof.legs),
        "mismatches": _mismatches(report),
        "verify_command": _verify_command(report),
        "command": command_of(prepared),
        "files": generated_files(prepared),
        "snippet": c_snippet(plan),
        "flags": " ".join(profile.flags if profile else (*plan.target.gcc, *toolchain.OPTIMIZE)),
        "cross": bool(plan.target.gcc),
    }


def _front(report: Report) -> str:
    """Return what RAM costs as SVG, where `mnet plan` has found it before; else nothing."""
    plan = report.prepared.plan
    points = front_if_cached(Request(plan.graph, plan.target, plan.oracle, plan.input_mode))
    return front_svg(points, f"{report.prepared.path.name} for {plan.target.name}") if points else ""


def _stack(profile: ModelProfile | None) -> tuple[str, str]:
    """Return the most stack that a call takes, and how it was found."""
    if profile is None:
        return "", ""
    painted = "" if profile.stack_bytes is None else f"; {profile.stack_bytes:,} B in one run"
    return f"{profile.worst_stack_bytes:,} B", f"RAM, at most, from the machine code{painted}"


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_rows(report: Report) -> list[LayerRow]:
    """Return the table of layers; the last rows are what is no layer."""
    prepared, plan = report.prepared, report.prepared.plan
    measured = {layer.name: layer for layer in report.profile.layers} if report.profile else {}
    in_file = {op.name: macs_of(prepared.source, op) for op in prepared.source.ops}
    colours = family_colours([op.kernel.family for op in plan.ops])
    rows = [_layer_row(plan, op, in_file, colours, measured.pop(op.name, None)) for op in plan.ops]
    rows += [_other_row(layer) for layer in measured.values()]
    weights = [(row.cycles if report.profile else row.macs) or 0 for row in rows]
    total, most = sum(weights) or 1, max(weights) or 1
    return [
        replace(row, share=100 * weight / total, bar=100 * weight / most)
        for row, weight in zip(rows, weights, strict=True)
    ]


def _layer_row(
    plan: Plan, op: PlannedOp, in_file: Mapping[str, int], colours: Mapping[str, str], found: LayerProfile | None
) -> LayerRow:
    storage = plan.storage[op.output]
    layouts = " + ".join(dict.fromkeys(plan.storage[name].layout.name for name in op.inputs))
    computes = not op.kernel.consumes_rows
    return LayerRow(
        name=op.name,
        kernel=op.kernel.family,
        colour=colours[op.kernel.family],
        shape=_by(op.call.output.tensor.shape),
        layouts=f"{layouts} \N{RIGHTWARDS ARROW} {storage.layout.name}",
        kept="whole" if storage.whole else f"{storage.slots} of {storage.virtual_rows}",
        calls=op.calls,
        macs=(macs_of(plan.graph, op.call.op) if computes else 0) or None,
        file_macs=(in_file.get(op.call.op.name, 0) if computes else 0) or None,
        instructions=found.instructions if found else None,
        cycles=found.cycles if found else None,
        share=0,
        bar=0,
        cycles_per_mac=found.cycles_per_mac if found else None,
        code_bytes=found.code_bytes or None if found else None,
        shares_code_with=found.shares_code_with if found else "",
        constant_bytes=found.constant_bytes or None if found else None,
    )


def _other_row(found: LayerProfile) -> LayerRow:
    return LayerRow(
        name=found.name,
        kernel="",
        colour=NO_FAMILY,
        shape="",
        layouts="",
        kept="",
        calls=None,
        macs=None,
        file_macs=None,
        instructions=found.instructions,
        cycles=found.cycles,
        share=0,
        bar=0,
        cycles_per_mac=None,
        code_bytes=found.code_bytes or None,
        shares_code_with="",
        constant_bytes=found.constant_bytes or None,
    )


def _chart(rows: Sequence[LayerRow], measured: bool) -> str:
    """Return cycles of each layer as SVG; multiply-adds where cycles are not known."""
    unit = "cycles" if measured else "multiply-adds"
    bars = []
    for row in rows:
        value = (row.cycles if measured else row.macs) or 0
        bars.append(Bar(row.name, row.kernel, value, f"{row.name}: {value:,} {unit}, {row.share:.1f} % {row.kernel}"))
    return bar_chart(f"{unit} of each layer", unit, bars)


def _times(profile: ModelProfile | None, clocks_mhz: Sequence[int]) -> list[tuple[str, int, list[str]]]:
    """Return what cycles are counted for, how many, and the milliseconds at each clock."""
    if profile is None:
        return []
    lines = [("zero wait states", profile.cycles)]
    if profile.wait_states:
        lines.append((f"flash with {profile.wait_states} wait states (estimate)", profile.flash_cycles))
    return [(what, cycles, [f"{cycles / clock / 1000:,.2f}" for clock in clocks_mhz]) for what, cycles in lines]


# --- memory -----------------------------------------------------------------------------------------------------------


def _amounts(plan: Plan, found: Certificate) -> list[Amount]:
    """Return arena, peak and bounds beside each other."""
    amounts = (
        ("arena", found.arena_bytes, f"rows {plan.rows_bytes:,} B and state {plan.state_bytes:,} B"),
        ("most bytes of rows live at one step", found.live_bytes, f"step {peak_of(plan)[0]:,}"),
        ("lower bound with these layouts", found.bound_bytes, f"the arena has {found.percent:.1f} % more"),
        (
            "lower bound whatever the layouts, at a byte a value",
            found.value_bound_bytes,
            f"the arena has {found.value_percent:.1f} % more",
        ),
    )
    most = max(size for _, size, _ in amounts)
    return [Amount(what, size, 100 * size / most, more) for what, size, more in amounts]


def _at_peak(plan: Plan) -> list[tuple[str, int]]:
    """Return whose rows are live at the peak, largest first; the small ones as one."""
    step, _ = peak_of(plan)
    sizes: dict[str, int] = {}
    for buffer in plan.buffers:
        if buffer.birth <= step <= buffer.death:
            maker = maker_of(plan, buffer.tensor)
            sizes[maker] = sizes.get(maker, 0) + buffer.size
    listed = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    rest = listed[_AT_PEAK:]
    return listed[:_AT_PEAK] + ([(f"{len(rest)} others", sum(size for _, size in rest))] if rest else [])


# --- proof ------------------------------------------------------------------------------------------------------------


def _mismatches(report: Report) -> list[str]:
    """Return for each tensor that differs where, and the command that shows it again, without folders in it."""
    here = replace(report.prepared, path=Path(report.prepared.path.name))
    return [explain(here, report.proof, leg, mismatch) for leg in report.proof.legs for mismatch in leg.mismatches]


def _verify_command(report: Report) -> str:
    """Return the command that proves the model again, with the options that the bits depend on."""
    words = command_of(report.prepared).removeprefix("mnet codegen ").rpartition(" -o ")[0]
    return f"mnet verify {words}" + (f" --seed {report.proof.seed}" if report.proof.seed else "")


# --- how to integrate -------------------------------------------------------------------------------------------------


def generated_files(prepared: Prepared) -> list[tuple[str, int, str]]:
    """Return name, bytes and purpose of each generated file; those of the folder's own test are one."""
    name = prepared.graph.name
    texts = emit(prepared.plan, Origin(command_of(prepared), __version__, (), prepared.source))
    sizes: dict[str, int] = {}
    for path, text in texts.items():
        kind = "test/" if path.startswith("test/") else path
        sizes[kind] = sizes.get(kind, 0) + len(text.encode())
    order = list(_PURPOSE)
    rows = [(path, size, path.removeprefix(name) if path.startswith(name) else path) for path, size in sizes.items()]
    return [(path, size, _PURPOSE[kind]) for path, size, kind in sorted(rows, key=lambda row: order.index(row[2]))]


def c_snippet(plan: Plan) -> str:
    """Return C that calls the generated functions, for the plan's input mode."""
    graph = plan.graph
    return (
        _environment(autoescape=False)
        .get_template("report/snippet.c.j2")
        .render(
            name=graph.name,
            NAME=graph.name.upper(),
            mode=plan.input_mode,
            inputs=_ports(graph, "input", graph.inputs),
            outputs=_ports(graph, "output", graph.outputs),
        )
    )


def _ports(graph: Graph, kind: str, tensors: Sequence[str]) -> dict[str, Tensor]:
    """Return inputs or outputs by what they are called in C."""
    return dict(zip(numbered(kind, len(tensors)), (graph.tensors[name] for name in tensors), strict=True))
