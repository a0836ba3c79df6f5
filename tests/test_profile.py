"""Profiles: rows that add up, a flash with wait states, what changed since, what each idea brings."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from codegen.emit import Origin, emit
from codegen.kernels import KERNELS
from codegen.requantize import requantizer
from mnet import ablation, figures, flash, proof
from mnet.cli import main
from mnet.counting import Edge
from mnet.errors import MnetError, ToolError
from mnet.flash import estimate
from mnet.oracle import LITERT, SHORTCUTS, requantization
from mnet.pipeline import Options, prepare
from mnet.profile import ModelProfile, profile_model
from tests.models import Builder, tiny_mobilenet
from tests.writer import serialise


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    return path


@pytest.fixture(scope="module")
def profile(model: Path) -> ModelProfile:
    try:
        proof.find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    return profile_model(prepare(model, Options(target="cortex-m4")), wait_states=5)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_add_up_to_the_totals(profile: ModelProfile) -> None:
    for what in (
        "instructions",
        "cycles",
        "flash_cycles",
        "fetch_cycles",
        "macs",
        "file_macs",
        "code_bytes",
        "constant_bytes",
    ):
        assert sum(getattr(layer, what) for layer in profile.layers) == getattr(profile, what) > 0


def test_every_kernel_has_code_or_shares_it(profile: ModelProfile) -> None:
    names = [layer.name for layer in profile.layers if layer.kernel]
    for layer in profile.layers:
        if layer.kernel:
            assert bool(layer.code_bytes) != bool(layer.shares_code_with)
            assert not layer.shares_code_with or names.index(layer.shares_code_with) < names.index(layer.name)


def test_layers_of_one_shape_share_their_code(tmp_path: Path) -> None:
    builder = Builder(3, (8, 8, 8), zero_point=-128)
    source = builder.conv("input", 8)
    (op,) = builder.ops
    for number in range(3):  # the same layer again and again
        target = f"again_{number}_out"
        builder.ops.append(replace(op, name=f"again_{number}", input=source, output=target))  # type: ignore[call-arg]
        builder.tensors[target] = replace(builder.tensors[op.output], name=target)
        source = target
    path = tmp_path / "again.tflite"
    path.write_bytes(serialise(builder.graph(source)))
    prepared = prepare(path, Options(target="cortex-m4", simplify=False))
    _, first, second, *_ = profile_model(prepared).layers
    assert first.code_bytes > 0 and first.shares_code_with == ""
    assert second.code_bytes == 0 and second.shares_code_with == first.name
    assert first.constant_bytes == second.constant_bytes > 0


def test_work_in_the_file_is_told_apart_from_work_that_is_done(profile: ModelProfile) -> None:
    assert profile.file_macs >= profile.macs
    layer = replace(profile.layers[0], cycles=100, macs=50, file_macs=200)
    assert (layer.cycles_per_mac, layer.cycles_per_file_mac) == (2.0, 0.5)
    assert replace(layer, macs=0, file_macs=0).cycles_per_mac is None


# --- flash with wait states ------------------------------------------------------------------------------------------

# microTVM's MLPerf Tiny submissions with CMSIS-NN on an STM32L4R5 at 120 MHz: published cycles, cycles and constants of
# the same sources in this model. See mnet/docs/cycles.md.
MEASURED = {
    "VWW": (36_140_000, 30_390_503, 263_408),
    "KWS": (11_980_000, 10_300_129, 29_120),
    "ResNet8": (46_750_000, 39_437_617, 84_416),
    "AD": (1_032_000, 804_537, 271_008),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_flash_model_is_within_its_error_bar_of_hardware(name: str) -> None:
    measured, modelled, constants = MEASURED[name]
    assert abs(estimate(modelled, constants, 5) / modelled - measured / modelled) < 0.03


@dataclass(frozen=True)
class FakeBlock:
    cycles: int
    end: int
    ends_in: str


def loop_of(size: int, rounds: int, ends_in: str = "b") -> flash.Fetch:
    """Return what a loop of one block at 100 takes from flash that is entered twice, so many rounds each time."""
    back = 2 * (rounds - 1)
    edges = [Edge(0, 0, 40, 4, 1, 2), Edge(0, 40, 100, size, 9, 2), Edge(0, 100, 100, size, 9, back)]
    blocks = {40: FakeBlock(3, 44, "b"), 100: FakeBlock(10, 100 + size, ends_in)}
    return flash.fetched(edges, lambda address, _: blocks[address])[0]


def test_a_loop_that_fits_the_cache_is_fetched_once_each_time_it_is_entered() -> None:
    assert loop_of(1024, 50).blocks == ((2, 4, 3), (2, 1024, 10))


def test_a_longer_loop_is_fetched_in_every_round() -> None:
    assert loop_of(1026, 50).blocks == ((2, 4, 3), (100, 1026, 10))


def test_a_call_backwards_is_no_loop() -> None:
    assert loop_of(64, 50, "bl").blocks == ((2, 4, 3), (100, 64, 10))


def test_waiting_for_code_takes_what_the_core_does_not_hide() -> None:
    fetch = flash.Fetch(((100, 64, 20), (100, 8, 20)))  # 64 B take 8 * (1 + waits) cycles, 20 of them hidden
    assert [fetch.stall(waits) for waits in (0, 1, 2, 5)] == [0, 0, 400, 2800]


def test_wait_states_slow_every_row_down(profile: ModelProfile) -> None:
    assert all(layer.flash_cycles > layer.cycles <= layer.fetch_cycles for layer in profile.layers)
    assert profile.fetch_cycles > profile.cycles
    assert estimate(profile.cycles, profile.constant_bytes, 0) == profile.cycles


# --- what changed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def old(profile: ModelProfile, tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(profile.as_json()))
    return found


Compared = Callable[[dict[str, Any]], Result]


@pytest.fixture
def compared(model: Path, profile: ModelProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compared:
    """Return the command with an old profile; the new one is the fixture, not made again."""
    monkeypatch.setattr("mnet.commands.profile.prepare", lambda path, options: None)
    monkeypatch.setattr("mnet.commands.profile.profile_model", lambda prepared, wait_states: profile)

    def compare(old: dict[str, Any]) -> Result:
        path = tmp_path / "old.json"
        path.write_text(json.dumps(old))
        return run("profile", model, "--target", "m4", "--compare", path)

    return compare


def test_a_profile_compares_equal_with_the_next_one(model: Path, tmp_path: Path, profile: ModelProfile) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(profile.as_json()))
    assert run("profile", model, "--target", "m4", "--compare", path).exit_code == 0


def test_what_did_not_change_is_counted(compared: Compared, old: dict[str, Any]) -> None:
    result = compared(old)
    assert result.exit_code == 0, result.output
    assert f"{len(old['layers'])} of {len(old['layers'])} layers take the same cycles" in result.stdout


def test_one_percent_slower_fails_with_a_sentence(compared: Compared, old: dict[str, Any]) -> None:
    now = old["cycles"]
    old["cycles"] = int(now / 1.02)
    old["layers"][0]["cycles"] -= now - old["cycles"]
    result = compared(old)
    assert result.exit_code == 1
    assert f"cycles grew by 2.00 %, from {old['cycles']:,} to {now:,}; the limit is 1 %." in result.stderr
    assert "+2.00 %" in result.stdout and old["layers"][0]["name"] in result.stdout


def test_less_than_one_percent_is_forgiven_and_faster_is_fine(compared: Compared, old: dict[str, Any]) -> None:
    old["cycles"] = int(old["cycles"] / 1.005)
    assert compared(old).exit_code == 0
    old["cycles"] *= 2
    assert compared(old).exit_code == 0


def test_instructions_decide_where_cycles_are_unknown(old: dict[str, Any]) -> None:
    new = dict(old)
    old["cycles"], old["instructions"] = None, int(old["instructions"] / 1.02)
    assert "instructions grew by 2.00 %" in figures.compare(old, new, "old.json").slower


@pytest.mark.parametrize(
    ("what", "other", "said"),
    [
        ("model_hash", "0123", "model tiny.tflite (hash 0123) there, model tiny.tflite (hash "),
        ("target", "cortex-m0", "target cortex-m0 there, target cortex-m4 here"),
        ("compiler", "gcc 1", "compiler gcc 1 there"),
        ("flags", ["-O0"], "flags -O0 there"),
    ],
)
def test_profiles_of_other_things_are_refused(
    what: str, other: object, said: str, compared: Compared, old: dict[str, Any]
) -> None:
    old[what] = other
    result = compared(old)
    assert result.exit_code == 2 and said in result.stderr and result.stderr.count("\n") == 1


def test_other_options_are_told(old: dict[str, Any]) -> None:
    new = dict(old) | {"input_mode": "rows"}
    assert figures.compare(old, new, "old.json").choices == ("input_mode const -> rows",)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"layers": 3}'])
def test_what_is_no_profile_is_refused(text: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text(text)
    with pytest.raises(MnetError, match="is no profile of this version"):
        figures.read_profile(tmp_path / "old.json")
    assert run("profile", model, "--target", "m4", "--compare", tmp_path / "none.json").exit_code == 2


# --- what each idea brings -------------------------------------------------------------------------------------------


def test_without_shortcuts_the_runtimes_own_steps_are_left(model: Path) -> None:
    graph = prepare(model, Options(target="cortex-m4")).graph
    (op, *_) = graph.ops
    forms = {}
    for shortcuts in (frozenset(), frozenset({"shifts"}), SHORTCUTS):
        how = requantization(op, graph, replace(LITERT, shortcuts=shortcuts))  # type: ignore[arg-type]
        low, high = -1000 * (how.multiplier > 0), 1000 * (how.multiplier > 0)
        forms[shortcuts] = requantizer(how, low, high).view.form
    assert list(forms.values()) == ["double", "shifts", "fast"]


def test_steps_leave_out_kernels_that_there_are() -> None:
    families = {kernel.family for kernel in KERNELS}
    first, *_, last = ablation.STEPS
    fast = {family for family in families if family.startswith(("convolution_", "depthwise_"))}
    assert fast == first.without
    assert not first.without & {"convolution", "depthwise"}
    assert (last.without, last.shortcuts, last.dead_channels) == (frozenset(), SHORTCUTS, True)


@pytest.mark.slow
def test_each_idea_brings_something_and_all_are_what_is_built(
    model: Path, profile: ModelProfile, tmp_path: Path
) -> None:
    result = run("profile", model, "--target", "m4", "--ablation", "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    cycles = [row["profile"]["cycles"] for row in json.loads((tmp_path / "a.json").read_text())]
    assert len(cycles) == len(ablation.STEPS) and cycles[0] > cycles[-1] == profile.cycles
    assert all(step.name in result.stdout for step in ablation.STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("step", ablation.STEPS, ids=lambda step: step.name)
def test_every_step_gives_the_same_bits(step: ablation.Step, model: Path, profile: ModelProfile) -> None:
    prepared = ablation.without(prepare(model, Options(target="cortex-m4")), step)
    legs = proof.prove(prepared, count=3, emulated_count=2).legs
    assert {leg.status for leg in legs if leg.name.startswith("C ")} == {"equal"}, legs


def test_a_core_without_these_kernels_has_no_ablation(model: Path) -> None:
    result = run("profile", model, "--target", "m0", "--ablation")
    assert result.exit_code == 2 and "choose --target cortex-m4" in result.stderr


# --- what simplifying saved ------------------------------------------------------------------------------------------


def with_a_dead_channel() -> Builder:
    builder = Builder(5, (8, 8, 3))
    convolved = builder.conv("input", 4, (3, 3), activation="relu6", zero_point=-128)
    (op,) = builder.ops
    weights, bias = op.weights.copy(), op.bias.copy()  # type: ignore[union-attr]
    weights[1], bias[1] = 0, -5
    builder.ops = [replace(op, weights=weights, bias=bias)]  # type: ignore[arg-type]
    builder.conv(convolved, 2, (1, 1))
    return builder


def test_show_simplified_tells_the_work_in_the_file_and_what_is_left(tmp_path: Path) -> None:
    builder = with_a_dead_channel()
    graph = builder.graph(builder.ops[-1].output)
    path = tmp_path / "dead.tflite"
    path.write_bytes(serialise(graph))
    text = run("show", path, "--stage", "simplified", "--target", "m4").stdout.splitlines()
    first, total = (line.replace(",", "").split() for line in (text[2], text[-1]))
    pixels = graph.tensors[graph.ops[0].output].shape
    size = pixels[0] * pixels[1]
    assert first[-4:] == [str(size * 81), str(size * 108), "81", "108"]
    assert total == ["total", str(size * 87), str(size * 116), "87", "116"]


def test_the_banner_tells_it_too(tmp_path: Path) -> None:
    builder = with_a_dead_channel()
    path = tmp_path / "dead.tflite"
    path.write_bytes(serialise(builder.graph(builder.ops[-1].output)))
    prepared = prepare(path, Options(target="cortex-m4"))
    text = emit(prepared.plan, Origin("", "", source=prepared.source))["dead.c"]
    assert "of its 116 weights are left:" in text and " of " in text.split("MACs")[1].rpartition("\n")[2]
    plain = emit(prepared.plan, Origin("", "", source=prepared.graph))["dead.c"]
    assert "multiply-adds, 87 weights, as in the file." in plain
    assert "weights" not in emit(prepared.plan, Origin("", ""))["dead.c"].partition("*/")[0]
