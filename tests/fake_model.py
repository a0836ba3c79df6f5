"""A folder as `mnet codegen` writes one, by hand and tiny, so that harness and emulators have a subject.

Per row of 8 bytes `widen` makes int16 values 3 * input + 1, and `sum` adds them up, weighted, and clamps: output[row].
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

ROWS, COLUMNS = 4, 8
INPUT_BYTES, OUTPUT_BYTES = ROWS * COLUMNS, ROWS
WEIGHTS = (1, -2, 3, -4, 5, -6, 7, -8)

HEADER = """\
#ifndef TINY_H
#define TINY_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
#define TINY_ARENA_BYTES 56
#define TINY_INPUT_BYTES 32
#define TINY_OUTPUT_BYTES 4
enum tiny_status { TINY_OK = 0, TINY_BAD_ARGUMENT };
enum tiny_status tiny_run(void *arena, const int8_t *input, int8_t *output);
#ifdef __cplusplus
}
#endif
#endif
"""

# Arena: bytes 0..31 two slots of widened rows, 32..35 the output, 40..55 the state.
SOURCE = """\
#include "tiny.h"
#include <stddef.h>
#include "tiny_instructions.h"

#if defined(TINY_TRACE_FUNCTION)
void TINY_TRACE_FUNCTION(unsigned entry, unsigned call, const void *rows);
#define TINY_TRACE(entry, call, pointer) TINY_TRACE_FUNCTION((entry), (call), (pointer))
#else
#define TINY_TRACE(entry, call, pointer) ((void)0)
#endif

typedef void tiny_kernel(const void *from, void *to, const int16_t *constants);
struct tiny_entry { tiny_kernel *run; const int16_t *constants; };
struct tiny_state { const uint8_t *next; uint8_t calls[2]; };
extern const int16_t tiny_weights[8];

static void tiny_widen(const void *from, void *to, const int16_t *constants)
{
    const int8_t *in = (const int8_t *)from;
    int16_t *out = (int16_t *)to;
    for (size_t i = 0; i < 8; i++) {
        out[i] = (int16_t)(3 * in[i] + constants[0]);
    }
}

static void tiny_sum(const void *from, void *to, const int16_t *constants)
{
    const int16_t *in = (const int16_t *)from;
    int32_t sum = 0;
    for (size_t i = 0; i < 8; i++) {
        sum += in[i] * constants[i];
    }
    *(int8_t *)to = (int8_t)tiny_clamp(sum / 16);
}

static const struct tiny_entry entries[2] = {{tiny_widen, tiny_weights}, {tiny_sum, tiny_weights}};
static const uint8_t schedule[9] = {0, 0, 1, 1, 0, 1, 0, 1, 255};

enum tiny_status tiny_run(void *arena, const int8_t *input, int8_t *output)
{
    uint8_t *bytes = (uint8_t *)arena;
    if (arena == NULL || input == NULL || output == NULL) {
        return TINY_BAD_ARGUMENT;
    }
    struct tiny_state *state = (struct tiny_state *)(void *)(bytes + 40);
    state->next = schedule;
    state->calls[0] = state->calls[1] = 0;
    while (*state->next != 255) {
        const uint8_t entry = *state->next++;
        const uint8_t call = state->calls[entry]++;
        uint8_t *slot = bytes + 16 * (call & 1);
        const void *from = entry == 0 ? (const void *)(input + 8 * call) : (const void *)slot;
        void *to = entry == 0 ? (void *)slot : (void *)(bytes + 32 + call);
        entries[entry].run(from, to, entries[entry].constants);
        TINY_TRACE(entry, call, to);
    }
    for (size_t i = 0; i < 4; i++) {
        output[i] = (int8_t)bytes[32 + i];
    }
    return TINY_OK;
}
"""

INSTRUCTIONS = """\
#ifndef TINY_INSTRUCTIONS_H
#define TINY_INSTRUCTIONS_H
#include <stdint.h>
#if defined(__ARM_FEATURE_SAT) && __ARM_FEATURE_SAT
#define tiny_clamp(x) tiny_ssat8(x)
static inline int32_t tiny_ssat8(int32_t x)
{
    int32_t y;
    __asm__("ssat %0, #8, %1" : "=r"(y) : "r"(x));
    return y;
}
#else
static inline int32_t tiny_clamp(int32_t x)
{
    return x < -128 ? -128 : x > 127 ? 127 : x;
}
#endif
#endif
"""

WEIGHTS_SOURCE = """\
#include <stdint.h>
extern const int16_t tiny_weights[8];
const int16_t tiny_weights[8] = {1, -2, 3, -4, 5, -6, 7, -8};
"""

# Steps 0..7: widen 0, widen 1, sum 0, sum 1, widen 2, sum 2, widen 3, sum 3.
MODEL = """\
#include "../tiny.h"
#define SUBJECT_ARENA_BYTES TINY_ARENA_BYTES
#define SUBJECT_STACK_BYTES 384
#define SUBJECT_INPUT_BYTES TINY_INPUT_BYTES
#define SUBJECT_OUTPUT_BYTES TINY_OUTPUT_BYTES
#define SUBJECT_OUTPUTS 1
static const uint32_t subject_output_bytes[SUBJECT_OUTPUTS] = {TINY_OUTPUT_BYTES};
static const uint32_t subject_output_places[SUBJECT_OUTPUTS] = {0};
#define SUBJECT_ENTRIES 2
#define SUBJECT_STEPS 8
#define SUBJECT_STATUS_OK TINY_OK
static inline int subject_run(void *arena, const int8_t *input, int8_t *output)
{
    return (int)tiny_run(arena, input, output);
}
static const uint32_t subject_trace_bytes[SUBJECT_ENTRIES] = {16, 1};
struct subject_box { uint32_t offset, bytes; uint16_t birth, death; };
#define SUBJECT_BOXES 9
static const struct subject_box subject_boxes[SUBJECT_BOXES] = {
    {0, 16, 0, 2}, {16, 16, 1, 3}, {0, 16, 4, 5}, {16, 16, 6, 7},
    {32, 1, 2, 8}, {33, 1, 3, 8}, {34, 1, 5, 8}, {35, 1, 7, 8}, {40, 16, 0, 8},
};
"""


def write(folder: Path, name: str = "tiny", **changes: str) -> Path:
    """Write the model to `folder`, with other texts where `changes` has some, and return the folder."""
    texts = {
        "header": HEADER,
        "source": SOURCE,
        "instructions": INSTRUCTIONS,
        "weights": WEIGHTS_SOURCE,
        "model": MODEL,
    }
    texts |= changes
    files = {
        "header": f"{name}.h",
        "source": f"{name}.c",
        "instructions": f"{name}_instructions.h",
        "weights": f"{name}_weights.c",
        "model": "test/subject.h",
    }
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for key, file in files.items():
        (folder / file).write_text(texts[key])
    (folder / f"{name}.plan.json").write_text("{}\n")
    return folder


def inputs(count: int, seed: int = 0) -> npt.NDArray[np.int8]:
    """Random images, int8 [count, ROWS, COLUMNS]."""
    return np.random.default_rng(seed).integers(-128, 128, (count, ROWS, COLUMNS)).astype(np.int8)


def widened(images: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """What the calls of entry 0 make: int16 [count, ROWS, COLUMNS]."""
    return (3 * images.astype(np.int16) + WEIGHTS[0]).astype(np.int16)


def outputs(images: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """What the model must answer: int8 [count, ROWS]."""
    sums = (widened(images).astype(np.int64) * np.array(WEIGHTS)).sum(axis=2)
    return np.clip(np.trunc(sums / 16), -128, 127).astype(np.int8)
