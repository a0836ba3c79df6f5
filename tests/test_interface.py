"""The C interface of a generated model: statuses, misuse, interleaved inferences, C++."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from codegen.emit import Origin, emit, write_folder
from codegen.planner import plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.errors import PlanError, ToolError
from mnet.oracle import LITERT
from mnet.toolchain import STRICT, check_warnings
from tests.models import tiny_mobilenet
from tests.strategies import random_input

GRAPH = tiny_mobilenet()
ORIGIN = Origin("mnet codegen net.tflite", "0", ("a", "b", "c"))

ROWS = """
#include <stdio.h>
#include <string.h>
#include "{name}.h"

#define CHECK(x) do {{ if (!(x)) {{ printf("line %d: %s\\n", __LINE__, #x); return 1; }} }} while (0)

int main(void)
{{
    static const char *const labels[] = {NAME}_LABELS;
    {NAME}_ARENA(first);
    {NAME}_ARENA(second);
    static int8_t images[2][{NAME}_INPUT_BYTES], out[2][{NAME}_OUTPUT_BYTES];
    static int8_t expected[2][{NAME}_OUTPUT_BYTES], untouched[{NAME}_OUTPUT_BYTES];
    uint32_t row;
    CHECK(fread(images, 1, sizeof images, stdin) == sizeof images);
    CHECK(fread(expected, 1, sizeof expected, stdin) == sizeof expected);
    CHECK(sizeof labels / sizeof labels[0] == 3);
    memset(out, 77, sizeof out);
    memset(untouched, 77, sizeof untouched);

    CHECK({name}_begin(NULL) == {NAME}_BAD_ARGUMENT);
    CHECK({name}_begin((char *)first + 1) == {NAME}_BAD_ARGUMENT);
    CHECK({name}_run(first, NULL, out[0]) == {NAME}_BAD_ARGUMENT);
    CHECK({name}_run(first, images[0], NULL) == {NAME}_BAD_ARGUMENT);
    CHECK({name}_begin(first) == {NAME}_OK);
    CHECK({name}_finish(first, out[0]) == {NAME}_BAD_ORDER);
    CHECK({name}_push_rows(first, NULL, 1) == {NAME}_BAD_ARGUMENT);
    CHECK({name}_push_rows(first, images[0], {NAME}_INPUT_ROWS + 1) == {NAME}_TOO_MANY_ROWS);
    CHECK(memcmp(out[0], untouched, sizeof untouched) == 0);

    /* two inferences, one row and two rows at a time, in turns */
    CHECK({name}_begin(second) == {NAME}_OK);
    for (row = 0; row < {NAME}_INPUT_ROWS; row += 2) {{
        CHECK({name}_push_rows(first, images[0] + row * {NAME}_INPUT_ROW_BYTES, 2) == {NAME}_OK);
        CHECK({name}_push_rows(second, images[1] + row * {NAME}_INPUT_ROW_BYTES, 1) == {NAME}_OK);
        CHECK({name}_push_rows(second, images[1] + (row + 1) * {NAME}_INPUT_ROW_BYTES, 1) == {NAME}_OK);
    }}
    CHECK({name}_push_rows(first, images[0], 1) == {NAME}_TOO_MANY_ROWS);
    CHECK({name}_finish(first, out[0]) == {NAME}_OK);
    CHECK({name}_finish(second, out[1]) == {NAME}_OK);
    CHECK(memcmp(out, expected, sizeof out) == 0);
    CHECK({name}_run(first, images[1], out[0]) == {NAME}_OK);
    CHECK(memcmp(out[0], expected[1], sizeof out[0]) == 0);
    return 0;
}}
"""


def generated(folder: Path, name: str = "cortex-m4", mode: str = "const") -> Path:
    write_folder(folder, emit(plan(simplify(GRAPH), target(name), LITERT, mode), ORIGIN))
    return folder


@pytest.mark.parametrize("name", ("cortex-m4", "cortex-m0"))
def test_pushed_rows_misuse_and_two_arenas(tmp_path: Path, name: str) -> None:
    folder = generated(tmp_path / "net", name, "rows")
    (tmp_path / "main.c").write_text(ROWS.format(name=GRAPH.name, NAME=GRAPH.name.upper()))
    sources = [tmp_path / "main.c", *folder.glob("*.c")]
    command = ["cc", *STRICT, "-O1", "-fsanitize=address,undefined", f"-I{folder}", *map(str, sources), "-o"]
    subprocess.run([*command, str(tmp_path / "main")], check=True, capture_output=True)
    images = random_input(GRAPH, 3, 2)
    expected = golden.run(GRAPH, LITERT, images)[GRAPH.outputs[0]]
    done = subprocess.run(
        [str(tmp_path / "main")], input=images["input"].tobytes() + expected.tobytes(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.mark.parametrize("mode", ("const", "arena", "rows"))
def test_no_heap_no_globals_that_change_no_library(tmp_path: Path, mode: str) -> None:
    folder = generated(tmp_path / "net", mode=mode)
    text = "".join(path.read_text() for path in (*folder.glob("*.c"), *folder.glob("*.h")))
    for forbidden in ("malloc", "memcpy", "memset", "printf", "__DATE__", str(tmp_path)):
        assert forbidden not in text
    for line in text.splitlines():
        assert len(line) < 400 and line == line.rstrip()
    for source in folder.glob("*.c"):
        out = tmp_path / "x.o"
        subprocess.run(["cc", "-c", "-O1", "-fno-pie", f"-I{folder}", str(source), "-o", str(out)], check=True)
        symbols = subprocess.run(["nm", str(out)], capture_output=True, text=True, check=True).stdout.split("\n")
        changing = [line for line in symbols if len(line) > 18 and line[17] in "bBdDcCU"]
        assert all(line[17] == "U" and GRAPH.name in line for line in changing), changing


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ("gcc", "clang", "arm-none-eabi-gcc", "zig"))
@pytest.mark.parametrize("name", ("cortex-m", "cortex-m0"))
def test_no_compiler_has_anything_to_say(tmp_path: Path, compiler: str, name: str) -> None:
    folder = generated(tmp_path / "net", name, "rows")
    for language in ("c", "c++"):
        try:
            check_warnings(folder, compiler, language)
        except ToolError as error:
            if "is missing" in str(error):
                pytest.skip(f"no {compiler}")
            raise


def test_files_of_different_models_refuse_each_other(tmp_path: Path) -> None:
    folder = generated(tmp_path / "net")
    header = folder / f"{GRAPH.name}_weights.h"
    text = header.read_text()
    at = text.index("_WEIGHTS_HASH 0x") + len("_WEIGHTS_HASH 0x")
    header.write_text(text[:at] + ("1" if text[at] == "0" else "0") + text[at + 1 :])
    done = subprocess.run(
        ["cc", "-c", f"-I{folder}", str(folder / f"{GRAPH.name}.c"), "-o", str(tmp_path / "x.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "different models" in done.stderr


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(PlanError, match="other files"):
        write_folder(tmp_path / "mine", {"a.c": ""})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.tex"]


def test_an_older_generated_folder_is_replaced(tmp_path: Path) -> None:
    folder = generated(tmp_path / "net")
    (folder / "stale.c").write_text("")
    generated(folder)
    assert not (folder / "stale.c").exists()
    assert np.all([path.stat().st_size > 0 for path in folder.glob("*.c")])
