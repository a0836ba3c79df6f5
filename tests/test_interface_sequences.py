"""Any sequence of calls of a generated model: statuses, bits, two arenas in turns, and one inference within another.

Arenas begin as random bytes and lie between canaries, which every call leaves alone; all is compiled with
AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codegen.emit import Origin, emit, write_folder
from codegen.planner import INPUT_MODES, plan
from codegen.simplify import simplify
from codegen.targets import target
from mnet import golden
from mnet.graph import Graph, Int8Array
from mnet.oracle import LITERT
from mnet.toolchain import STRICT
from tests.models import tiny_mobilenet, tiny_residual
from tests.strategies import random_input

OK, BAD_ARGUMENT, BAD_ORDER, TOO_MANY_ROWS = range(4)
ARENAS = 2
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

COMMON = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "name_.h"

#define GUARD 64
#define WORDS (NAME_ARENA_BYTES / 4u)
#define CANARY 0xC5C5C5C5u
static uint32_t guarded[2][GUARD + WORDS + GUARD];
static int8_t images[2][NAME_INPUT_BYTES], output[NAME_OUTPUT_BYTES];

static void *arena_of(int which)
{
    return guarded[which] + GUARD;
}

static void prepare(void)
{
    size_t at;
    int which;
    for (which = 0; which < 2; ++which)
        for (at = 0; at < sizeof guarded[0] / 4; ++at)
            guarded[which][at] = at < GUARD || at >= GUARD + WORDS ? CANARY : (uint32_t)rand() * 69069u;
}

static void check_guards(void)
{
    size_t at;
    int which;
    for (which = 0; which < 2; ++which)
        for (at = 0; at < GUARD; ++at)
            if (guarded[which][at] != CANARY || guarded[which][GUARD + WORDS + at] != CANARY) {
                fprintf(stderr, "a canary of arena %d died\\n", which);
                exit(9);
            }
}

static void load(void)
{
    if (fread(images, 1, sizeof images, stdin) != sizeof images)
        exit(8);
    prepare();
}
"""

# One call for each three bytes of the script: which, arena, rows. Prints its status, and the output where there is one.
SEQUENCES = """
int main(void)
{
    size_t taken[2] = {0, 0};
    uint8_t call[3];
    load();
    while (fread(call, 1, sizeof call, stdin) == sizeof call) {
        void *const arena = arena_of(call[1]);
        const int8_t *rows = images[call[1]] + taken[call[1]] * NAME_INPUT_ROW_BYTES;
        enum name_status status = NAME_OK;
        size_t *const at = &taken[call[1]];
        int answers = 0;
        memset(output, 77, sizeof output);
        switch (call[0]) {
        case 'b': status = name_begin(arena); *at = 0; break;
        case 'p': status = name_push_rows(arena, rows, call[2]); *at += status == NAME_OK ? call[2] : 0; break;
        case 'f': status = name_finish(arena, output); answers = 1; break;
        case 'r': status = name_run(arena, images[call[1]], output); answers = 1; break;
        case '0': status = name_begin(NULL); break;
        case '1': status = name_begin((char *)arena + 1 + call[2] % 3); break;
        case '2': status = name_push_rows(arena, NULL, call[2]); break;
        case '3': status = name_push_rows(NULL, rows, call[2]); break;
        case '4': status = name_push_rows((char *)arena + 2, rows, call[2]); break;
        case '5': status = name_finish(arena, NULL); break;
        case '6': status = name_finish((char *)arena + 3, output); answers = 1; break;
        case '7': status = name_run(arena, NULL, output); answers = 1; break;
        default: status = name_run(arena, images[call[1]], NULL); break;
        }
        check_guards();
        putchar((int)status);
        if (answers)
            fwrite(output, 1, sizeof output, stdout);
    }
    return 0;
}
"""

# An interrupt after step `at` of one inference runs a whole other one in its own arena.
WITHIN = """
static unsigned long at, steps;
static int8_t inner[NAME_OUTPUT_BYTES];

static int infer(int which, int8_t *to)
{
INFER
}

void interrupt(unsigned entry, unsigned call, const void *rows);

void interrupt(unsigned entry, unsigned call, const void *rows)
{
    (void)entry, (void)call, (void)rows;
    if (steps++ == at && infer(1, inner) != 0)
        exit(7);
}

int main(void)
{
    load();
    for (at = 0; at == 0 || steps > at; at += 3) {
        steps = 0;
        prepare();
        if (infer(0, output) != 0)
            return 6;
        check_guards();
        fwrite(output, 1, sizeof output, stdout);
        if (steps > at)
            fwrite(inner, 1, sizeof inner, stdout);
    }
    return 0;
}
"""

INFER = {
    "const": "    return (int)name_run(arena_of(which), images[which], to);",
    "arena": "    memcpy(name_input(arena_of(which)), images[which], sizeof images[which]);\n"
    "    return (int)name_run_in_place(arena_of(which), to);",
    "rows": "    uint32_t row;\n"
    "    int status = (int)name_begin(arena_of(which));\n"
    "    for (row = 0; row < NAME_INPUT_ROWS; ++row)\n"
    "        status |= (int)name_push_rows(arena_of(which), images[which] + row * NAME_INPUT_ROW_BYTES, 1);\n"
    "    return status | (int)name_finish(arena_of(which), to);",
}


@dataclass(frozen=True)
class Program:
    """A compiled sequence driver and what its two images must give."""

    path: Path
    images: Int8Array
    expected: Int8Array  # int8 [images, ...]

    def run(self, script: bytes = b"") -> bytes:
        done = subprocess.run(
            [str(self.path)], input=self.images.tobytes() + script, capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout


def compiled(graph: Graph, core: str, mode: str, text: str, folder: Path, flags: Sequence[str] = ()) -> Program:
    """Generate a network and compile it with the driver `text`."""
    name = graph.name
    write_folder(folder / name, emit(plan(simplify(graph), target(core), LITERT, mode), Origin("mnet codegen", "0")))
    source = folder / "main.c"
    driver = (COMMON + text).replace("name_.h", f"{name}.h").replace("NAME", name.upper())
    source.write_text(driver.replace("name_", f"{name}_"))
    sources = [source, *sorted((folder / name).glob("*.c"))]
    command = ["cc", *STRICT, "-O1", "-g", *SANITIZERS, *flags, f"-I{folder / name}", *map(str, sources)]
    done = subprocess.run([*command, "-o", str(folder / "main")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = random_input(graph, 5, 2)
    return Program(folder / "main", images["input"], golden.run(graph, LITERT, images)[graph.outputs[0]])


GRAPHS = {"cortex-m4": tiny_mobilenet(), "cortex-m0": tiny_residual()}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Program]:
    return {
        core: compiled(graph, core, "rows", SEQUENCES, tmp_path_factory.mktemp("sequences"))
        for core, graph in GRAPHS.items()
    }


def expected_of(program: Program, calls: Sequence[tuple[str, int, int]]) -> bytes:
    """Return what the driver must print: the interface's contract, in Python."""
    height = program.images.shape[1]
    taken: list[int | None] = [None] * ARENAS  # rows since begin; None: nothing was begun
    said = bytearray()
    for kind, arena, count in calls:
        status, answer, answers = OK, bytes([77]) * program.expected[0].size, kind in "fr67"
        rows = taken[arena]
        match kind:
            case "b":
                taken[arena] = 0
            case "p" if rows is None:
                status = BAD_ORDER
            case "p" if rows is not None:
                status = OK if rows + count <= height else TOO_MANY_ROWS
                taken[arena] = rows + count if status == OK else rows
            case "f":
                status = OK if rows == height else BAD_ORDER
            case "r":
                taken[arena] = height
            case _:
                status = BAD_ARGUMENT
        if kind in "fr" and status == OK:
            answer = program.expected[arena].tobytes()
        said.append(status)
        said += answer if answers else b""
    return bytes(said)


def calls_of(height: int) -> st.SearchStrategy[tuple[str, int, int]]:
    count = st.one_of(st.integers(0, 3), st.sampled_from((height - 1, height, height + 1, 255)))
    return st.tuples(st.sampled_from("bbppppppppffr012345678"), st.integers(0, ARENAS - 1), count)


@pytest.mark.slow
@pytest.mark.parametrize("core", GRAPHS)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_sequence_of_calls_keeps_the_contract(programs: dict[str, Program], core: str, data: st.DataObject) -> None:
    program = programs[core]
    calls = data.draw(st.lists(calls_of(program.images.shape[1]), max_size=40))
    script = b"".join(bytes([ord(kind), arena, count]) for kind, arena, count in calls)
    assert program.run(script) == expected_of(program, calls)


@pytest.mark.slow
@pytest.mark.parametrize("core", GRAPHS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rows_in_any_portions_of_two_images_in_turns_give_the_golden_bits(
    programs: dict[str, Program], core: str, data: st.DataObject
) -> None:
    program = programs[core]
    height = program.images.shape[1]
    calls = [("b", 0, 0), ("b", 1, 0)]
    left = [height, height]
    while any(left):
        arena = data.draw(st.sampled_from([which for which in range(ARENAS) if left[which]]))
        count = data.draw(st.integers(0, left[arena]))
        left[arena] -= count
        calls.append(("p", arena, count))
    calls += [("f", 1, 0), ("f", 0, 0), ("f", 0, 0)]
    script = b"".join(bytes([ord(kind), arena, count]) for kind, arena, count in calls)
    said = program.run(script)
    assert said == expected_of(program, calls)
    assert said.endswith(b"".join(bytes([OK]) + program.expected[arena].tobytes() for arena in (1, 0, 0)))


def test_each_misuse_has_its_status(programs: dict[str, Program]) -> None:
    program = programs["cortex-m4"]
    height = program.images.shape[1]
    calls = [
        *(("p", 0, 1), ("p", 0, 0), ("f", 0, 0)),  # nothing was begun
        *(("b", 0, 0), ("f", 0, 0), ("p", 0, 0), ("p", 0, height + 1), ("p", 0, height - 1), ("f", 0, 0)),
        *(("p", 0, 2), ("p", 0, 1), ("p", 0, 1), ("p", 0, 0), ("f", 0, 0), ("f", 0, 0), ("p", 0, 1)),
        *((kind, 0, 1) for kind in "012345678"),
        ("f", 0, 0),  # no misuse spoils what is there
    ]
    said = program.run(b"".join(bytes([ord(kind), arena, count]) for kind, arena, count in calls))
    assert said == expected_of(program, calls)


def test_an_arena_of_zeros_is_not_begun(tmp_path: Path) -> None:
    text = SEQUENCES.replace("    load();\n", "    load();\n    memset(arena_of(0), 0, NAME_ARENA_BYTES);\n")
    program = compiled(tiny_mobilenet(), "cortex-m4", "rows", text, tmp_path)
    assert program.run(b"p\0\1p\0\0")[:2] == bytes([BAD_ORDER, BAD_ORDER])


@pytest.mark.slow
@pytest.mark.parametrize("mode", INPUT_MODES)
@pytest.mark.parametrize("core", GRAPHS)
def test_an_inference_within_another_changes_neither(core: str, mode: str, tmp_path: Path) -> None:
    graph = GRAPHS[core]
    text = WITHIN.replace("INFER", INFER[mode])
    program = compiled(graph, core, mode, text, tmp_path, [f"-D{graph.name.upper()}_TRACE_FUNCTION=interrupt"])
    said = program.run()
    outer, inner = (program.expected[which].tobytes() for which in range(ARENAS))
    runs = (len(said) - len(outer)) // len(outer + inner)
    assert runs > 10 and said == (outer + inner) * runs + outer


IN_PLACE = """
int main(void)
{
    int8_t *image;
    load();
    if (name_input(NULL) != NULL || name_run_in_place(NULL, output) != NAME_BAD_ARGUMENT)
        return 1;
    if (name_run_in_place(arena_of(0), NULL) != NAME_BAD_ARGUMENT)
        return 2;
    if (name_run_in_place((char *)arena_of(0) + 2, output) != NAME_BAD_ARGUMENT)
        return 3;
    image = name_input(arena_of(0));
    if (image < (int8_t *)arena_of(0) || image + NAME_INPUT_BYTES > (int8_t *)arena_of(0) + NAME_ARENA_BYTES)
        return 4;
    memcpy(image, images[0], NAME_INPUT_BYTES);
    memcpy(name_input(arena_of(1)), images[1], NAME_INPUT_BYTES);
    if (name_run_in_place(arena_of(0), output) != NAME_OK)
        return 5;
    fwrite(output, 1, sizeof output, stdout);
    if (name_run_in_place(arena_of(1), output) != NAME_OK)
        return 6;
    fwrite(output, 1, sizeof output, stdout);
    check_guards();
    return 0;
}
"""


@pytest.mark.parametrize("core", GRAPHS)
def test_the_arena_takes_the_image(core: str, tmp_path: Path) -> None:
    program = compiled(GRAPHS[core], core, "arena", IN_PLACE, tmp_path)
    assert program.run() == program.expected.tobytes()
