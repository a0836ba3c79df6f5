"""Names of classes from the model file to the header: what other programs make of the file, and of damaged ones."""

import codecs
import io
import random
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from codegen.emit import c_string
from mnet.cli import main
from mnet.errors import MissingToolError
from mnet.labels import labels_of, with_labels
from mnet.runtimes import RUNTIMES
from mnet.tflite import parse_model
from tests.models import tiny_mobilenet
from tests.mutate import damaged
from tests.strategies import random_input
from tests.writer import serialise

MODEL = serialise(tiny_mobilenet())
NAMES = ("cat", 'K\u00e4se "light"', "back\\slash, what??!")
_TEXTS = st.text(st.characters(codec="utf-8"))


@given(st.lists(_TEXTS, min_size=1, max_size=9))
def test_names_come_back_each_on_a_line(names: list[str]) -> None:
    file = with_labels(MODEL, tuple(names))
    assert file.startswith(MODEL) and file == with_labels(MODEL, tuple(names))
    read = labels_of(file)
    assert len(read) == len(names) and all(name.isprintable() for name in read)
    assert all(mine == theirs for mine, theirs in zip(read, names, strict=True) if theirs.isprintable())


def test_other_programs_find_them(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(with_labels(MODEL, NAMES))
    text = "".join(f"{name}\n" for name in NAMES)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["labels.txt"] and archive.testzip() is None
        assert archive.read("labels.txt").decode() == text
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-p", str(path), "labels.txt"], capture_output=True)
        assert done.stdout.decode() == text


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_importer_and_runtimes_do_not_see_them(name: str) -> None:
    file = with_labels(MODEL, NAMES)
    plain, named = parse_model(MODEL, "net.tflite"), parse_model(file, "net.tflite")
    assert repr(replace(named, model_hash="")) == repr(replace(plain, model_hash=""))
    inputs = random_input(plain, seed=1, count=1)
    try:
        expected, found = (RUNTIMES[name].run(data, plain, inputs) for data in (MODEL, file))
    except MissingToolError as error:
        pytest.skip(str(error))
    assert all(np.array_equal(expected[tensor], found[tensor]) for tensor in plain.tensors)


def _archive(*entries: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    file.write(MODEL)
    with zipfile.ZipFile(file, "a", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


def test_names_that_other_tools_wrote_are_read() -> None:
    assert labels_of(_archive(("labelmap.txt", b"\xef\xbb\xbfno\r\nyes"))) == ("no", "yes")
    assert labels_of(_archive(("vocabulary.txt", b"a\nb\n"), ("labels.txt", b"no\nyes\n"))) == ("no", "yes")
    assert labels_of(_archive(("a.txt", b"a\n"), ("b.txt", b"b\n"))) == ()  # nobody knows which
    assert labels_of(_archive(("about.json", b"{}"))) == ()
    assert labels_of(_archive(("labels.txt", b"\xff\xfe"))) == ()
    assert labels_of(_archive(("labels.txt", bytes(1 << 25)))) == ()  # 32 MB of zeros are 32 KB here
    assert labels_of(MODEL) == labels_of(b"") == ()
    assert labels_of(_archive(("labels.txt", b"no\x1b[2J\nyes\n"))) == ("no [2J", "yes")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_archives_give_names_or_none(compression: int) -> None:
    text = "".join(f"{name}\n" for name in NAMES).encode()
    archive = _archive(("labels.txt", text), compression=compression)[len(MODEL) - 8 :]
    chance = random.Random(compression)
    for _ in range(3000):
        for name in labels_of(damaged(archive, chance)):
            assert name.isprintable()


@given(st.text(st.characters(codec="utf-8", exclude_characters="?")))
def test_c_strings_hold_the_bytes_of_their_text(text: str) -> None:
    literal = c_string(text)  # Python has the same escapes, but for the one that breaks trigraphs
    assert literal.isprintable() and codecs.escape_decode(literal[1:-1].encode())[0] == text.encode()


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_a_compiler_reads_what_was_meant(tmp_path: Path) -> None:
    texts = (*NAMES, "line\nbreak\t1", "???=", "\x001", "a*/b", "\u2028\u202e", "\U0001f431", "%s", "")
    source = tmp_path / "names.c"
    array = ", ".join(f"{{ sizeof {c_string(text)} - 1, {c_string(text)} }}" for text in texts)
    source.write_text(
        "#include <stdio.h>\nstatic const struct { unsigned size; const char *text; } names[] = { " + array + " };\n"
        "int main(void) { unsigned i; for (i = 0; i < sizeof names / sizeof names[0]; i++) {"
        ' fwrite(names[i].text, 1, names[i].size, stdout); fputs("|", stdout); } return 0; }\n',
        encoding="utf-8",
    )
    subprocess.run(["cc", "-std=c99", "-Wall", "-Werror", "-o", tmp_path / "names", source], check=True)
    made = subprocess.run([tmp_path / "names"], capture_output=True, check=True).stdout
    assert made == b"".join(text.encode() + b"|" for text in texts)


def _codegen(path: Path, *options: str) -> tuple[str, str]:
    done = CliRunner().invoke(main, ["codegen", str(path), "-o", str(path.with_suffix("")), *options])
    assert done.exit_code == 0, done.output
    return done.output, (path.with_suffix("") / f"{path.stem}.h").read_text()


def test_codegen_takes_the_names_from_the_file_unless_others_are_given(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(with_labels(MODEL, NAMES))
    _, header = _codegen(path)
    assert f"#define NET_LABELS {{ {', '.join(map(c_string, NAMES))} }}" in header
    assert "--labels" not in header
    _, header = _codegen(path, "--labels", 'a*/b,"c",d')
    assert '#define NET_LABELS { "a*/b", "\\"c\\"", "d" }' in header and "a* /b" in header
    shown = CliRunner().invoke(main, ["show", str(path), "--stage", "graph"]).output
    assert f"classes: {', '.join(NAMES)}" in shown


def test_names_that_do_not_fit_are_left_out_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(with_labels(MODEL, ("only", "two")))
    text, header = _codegen(path)
    assert "has 2 names, which fits no output: left out" in text and "LABELS" not in header
    done = CliRunner().invoke(main, ["codegen", str(path), "--labels", "a,b", "-o", str(tmp_path / "c")])
    assert done.exit_code == 2 and "--labels has 2 names, but no output of" in done.output
    assert not (tmp_path / "c").exists()


def test_many_names_are_on_many_lines(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    names = tuple(f"class number {number}" for number in range(40))
    path.write_bytes(with_labels(serialise(tiny_mobilenet(classes=40)), names))
    _, header = _codegen(path)
    assert max(map(len, header.splitlines())) < 140
    assert header.count(" \\\n    ") > 5
