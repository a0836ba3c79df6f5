"""`mnet report`: a sound page that needs nothing else, figures of profile and verify, whatever the names are."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from codegen.emit import Origin, emit
from mnet import pipeline
from mnet.bars import Bar, bar_chart
from mnet.cli import main
from mnet.commands.console import write_text
from mnet.errors import ToolError
from mnet.pipeline import Options, prepare
from mnet.proof import Proof, find_target_compiler
from mnet.report import Report, c_snippet, generated_files, html, layer_rows
from mnet.verify import Leg, Mismatch
from tests.models import tiny_mobilenet
from tests.tools import hide_compilers
from tests.writer import edited, serialise

SAMPLE = Path(__file__).parent / "models" / "sample_a25.tflite"
VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = '<script>alert("x")</script>&\x1b]0;x\x07"\'></title></style></svg>\N{GREEK SMALL LETTER MU}'


class Page(HTMLParser):
    """A page, parsed strictly: every element is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, attrs)
        self.attributes |= set(names)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows and ({"td", "th"} & set(self.open)):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        (found,) = (row for row in self.rows if row[0] == name)
        return found


def checked(text: str) -> Page:
    """Return a page after checking that it is sound, in ASCII and needs nothing from elsewhere."""
    page = Page(text)
    assert text.isascii() and text.startswith("<!doctype html>")
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not any(name.startswith("on") for name in page.attributes)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style and "@import" not in style
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2
    for picture in pictures:
        assert ElementTree.fromstring(picture).tag.endswith("svg")
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http-equiv", "")
    return page


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.tflite"
    path.write_bytes(serialise(tiny_mobilenet()))
    return path


# --- with compilers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_says_what_profile_and_verify_say(tmp_path: Path) -> None:
    try:
        find_target_compiler()
    except ToolError as error:
        pytest.skip(str(error))
    inputs = ("--inputs", 3, "--emulated", 1)
    first = run("report", SAMPLE, "--target", "m4", *inputs, "-o", tmp_path / "a" / "one.html")
    assert first.exit_code == 0, first.output
    text = (tmp_path / "a" / "one.html").read_text()
    page = checked(text)
    profile: dict[str, Any] = json.loads(run("profile", SAMPLE, "--target", "m4", "--json").stdout)
    for layer in profile["layers"]:
        row = page.row(layer["name"])
        for what in ("cycles", "instructions", "macs", "file_macs", "code_bytes", "constant_bytes"):
            assert not layer[what] or f"{layer[what]:,}" in row, (what, row)
        assert f"{100 * layer['cycles'] / profile['cycles']:.1f}" in row and row[1] == layer["kernel"]
    words = " ".join(page.words)
    totals = ("cycles", "instructions", "flash_bytes", "arena_bytes", "stack_bytes", "worst_stack_bytes", "macs")
    for what in (*totals, "file_macs"):
        assert f"{profile[what]:,}" in words, what
    assert profile["compiler"] in words and " ".join(profile["flags"]) in words and profile["model_hash"] in words
    assert f"{profile['cycles'] / 80_000:,.2f} ms" in words

    proof: dict[str, Any] = json.loads(run("verify", SAMPLE, "--target", "m4", *inputs, "--json").stdout)
    for leg in proof["legs"]:
        figures = [f"{leg[what]:,}" for what in ("inputs", "tensors", "values", "differing")]
        assert page.row(leg["name"]) == [leg["name"], *figures, leg["status"]]

    again = run("report", SAMPLE, "--target", "m4", *inputs, "-o", tmp_path / "two.html")
    assert again.exit_code == 0 and (tmp_path / "two.html").read_text() == text
    assert str(tmp_path) not in text and str(SAMPLE.parent) not in text


# --- without ----------------------------------------------------------------------------------------------------------


def test_without_compilers_it_says_what_is_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_compilers(monkeypatch)
    out = tiny.parent / "tiny.html"
    result = run("report", tiny, "--target", "m4", "-o", out)
    assert result.exit_code == 3, result.output
    assert "not profiled: arm-none-eabi-gcc is missing" in result.stdout
    page = checked(out.read_text())
    words = " ".join(page.words)
    assert "Cycles, instructions, stack and code size are missing: arm-none-eabi-gcc" in words
    assert page.row("C on cortex-m4")[-1].startswith("not run arm-none-eabi-gcc is missing")
    assert page.row("LiteRT reference kernels")[-1] == "equal"
    prepared = prepare(tiny, Options("cortex-m4"))
    for op in prepared.plan.ops:
        assert page.row(op.name)[1] == op.kernel.family
    before = out.read_text()
    assert run("report", tiny, "--target", "m4", "-o", out, "--allow-missing").exit_code == 0
    assert out.read_text() == before
    assert {path.name for path in tiny.parent.iterdir()} == {"tiny.tflite", "tiny.html"}


def test_whatever_the_model_calls_things_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(model: Any) -> None:
        for number, tensor in enumerate(model.subgraphs[0].tensors):
            tensor.name = f"{HOSTILE}{number}".encode()

    hide_compilers(monkeypatch)
    path = tmp_path / "a'<img src=x onerror=alert(1)>&amp;.tflite"
    path.write_bytes(edited(serialise(tiny_mobilenet()), rename))
    out = tmp_path / "page.html"
    assert run("report", path, "--target", "m4", "-o", out).exit_code == 3
    text = out.read_text()
    page = checked(text)
    assert "<script" not in text and "<img" not in text and "\x1b" not in text
    words = "".join(page.words)
    assert path.name in words and '<script>alert("x")</script>&' in words and "\N{GREEK SMALL LETTER MU}" in words


@pytest.mark.parametrize("name", ["page.txt", "tiny.tflite", "tiny.tflite/page.html", "folder.html"])
def test_a_bad_place_gets_one_sentence_and_leaves_nothing(
    name: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_compilers(monkeypatch)
    (tiny.parent / "folder.html").mkdir()
    before = {path: path.read_bytes() for path in tiny.parent.rglob("*") if path.is_file()}
    result = run("report", tiny, "--target", "m4", "-o", tiny.parent / name)
    assert result.exit_code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and name in result.stderr
    assert {path: path.read_bytes() for path in tiny.parent.rglob("*") if path.is_file()} == before


def test_a_bad_model_leaves_no_page(tmp_path: Path) -> None:
    result = run("report", tmp_path / "absent.tflite", "-o", tmp_path / "page.html")
    assert result.exit_code == 2 and "cannot be read" in result.stderr and not list(tmp_path.iterdir())


# --- its parts --------------------------------------------------------------------------------------------------------


def test_a_byte_that_differs_is_told_where(tiny: Path) -> None:
    prepared = prepare(tiny, Options("cortex-m4"))
    name = prepared.plan.ops[0].output
    mismatch = Mismatch(name, 1, 2, 3, 4, got=-31, expected=-30, differing=7, values=900)
    leg = Leg("C <on> x", "differs", 2, 3, 1000, 7, mismatches=(mismatch,))
    report = Report(prepared, None, "no <b>compiler</b>", Proof("m", "cortex-m4", "litert", 5, (leg,)), (80,))
    assert report.exit_code == 1
    words = " ".join(checked(html(report)).words)
    assert "7 of 1,000 values differ" in words and "got -31, expected -30" in words
    assert f"mnet verify tiny.tflite --target cortex-m4 --layer {prepared.plan.ops[0].name}" in words
    assert str(tiny.parent) not in words and "no <b>compiler</b>" in words
    assert sum(row.share for row in layer_rows(report)) == pytest.approx(100)


def test_every_generated_file_has_a_purpose(tiny: Path) -> None:
    prepared = prepare(tiny, Options("cortex-m4"))
    files = generated_files(prepared)
    made = emit(prepared.plan, Origin(pipeline.command_of(prepared), "", (), prepared.source))
    assert {path for path, _, _ in files} == {"test/" if path.startswith("test/") else path for path in made}
    assert files[0][0] == "tiny.h" and all(size and purpose for _, size, purpose in files)


@pytest.mark.parametrize("mode", ["const", "arena", "rows"])
def test_the_snippet_compiles(mode: str, tiny: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is missing")
    prepared = prepare(tiny, Options("cortex-m4", input_mode=mode))
    folder = tiny.parent / "tiny"
    pipeline.write(prepared, folder)
    write_text(tiny.parent / "app.c", c_snippet(prepared.plan))
    command = [compiler, "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{folder}"]
    done = subprocess.run([*command, str(tiny.parent / "app.c")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(st.lists(st.tuples(st.text(max_size=48), st.sampled_from(["", "a", "b<"]), st.integers(0, 10**8)), min_size=1))
def test_bars_are_sound_whatever_the_layers_are(layers: list[tuple[str, str, int]]) -> None:
    text = bar_chart("t", "cycles", [Bar(name, family, value, name) for name, family, value in layers])
    assert text.isascii()
    root = ElementTree.fromstring(text)
    boxes = [element for element in root.iter() if element.get("class") == "dot"]
    assert len(boxes) == len(layers)
    heights = [float(element.get("height", "")) for element in boxes]
    edges = [float(element.get("x", "")) + float(element.get("width", "")) for element in boxes]
    assert all(0 < height <= 240 for height in heights) and edges == sorted(edges) and edges[-1] < 1000
    values = [value for _, _, value in layers]
    assert heights[values.index(max(values))] == max(heights)


def test_names_below_bars_are_slanted_only_where_they_need_it() -> None:
    few = bar_chart("t", "cycles", [Bar(f"l{n}", "a", n, "") for n in range(5)])
    many = bar_chart("t", "cycles", [Bar(f"layer_{n}", "a", n, "") for n in range(80)])
    assert "rotate" not in few and many.count("rotate(-60") == 80
