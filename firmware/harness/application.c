/* The least application around a generated model: nothing is in RAM but its arena, what it is given, its output and the stack.
 *
 * Reads inputs.bin, SUBJECT_INPUT_BYTES for each inference, writes outputs.bin, SUBJECT_OUTPUT_BYTES for each. Where rows are
 * pushed, one row at a time is in memory, and the file has them in the order in which they are pushed; where the arena takes
 * the inputs, they are read to their places there. The arena lies between guards and begins as random bytes. Exit status 0 means that every call returned SUBJECT_STATUS_OK and no guard
 * was touched; "stack N" is the most that the whole program has pushed, from reset on.
 *
 * The linker refuses a program for whose stack, by the bound of the model's header, there is no room.
 */
#include "io.h"

#include <stddef.h>
#include <stdint.h>

#include "test/subject.h"

enum { GUARD_WORDS = 4, ARENA_WORDS = SUBJECT_ARENA_BYTES / 4 };
#define GUARD 0xC5C5C5C5u
#define STACK_PAINT 0x5A5AA5A5u
enum failure { FAIL_FILE = 2, FAIL_STATUS = 3, FAIL_MEMORY = 4 };

static uint32_t guarded_arena[GUARD_WORDS + ARENA_WORDS + GUARD_WORDS];
static int8_t output[SUBJECT_OUTPUT_BYTES] __attribute__((aligned(4)));
#if defined(SUBJECT_PUSHES_ROWS)
static int8_t row[SUBJECT_MOST_ROW_BYTES];
#elif !defined(SUBJECT_RUNS_IN_PLACE)
static int8_t image[SUBJECT_INPUT_BYTES];
#endif

/* Room for the stack: the model's, and what this program has on it from reset to a call of the model. */
enum { OWN_STACK_BYTES = 128 };
__attribute__((used, section(".stack_bytes"))) static uint8_t stack_room[SUBJECT_STACK_BYTES + OWN_STACK_BYTES];

extern uint32_t __stack_limit, __stack_top; /* from the linker script */

static void print_line(const char *what, uint32_t number)
{
    char digits[11];
    char *first = digits + sizeof digits - 1;
    *first = '\0';
    do {
        *--first = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    io_print(what);
    io_print(first);
    io_print("\n");
}

/* Random bytes in the arena, guards around it. Marsaglia, "Xorshift RNGs", 2003. */
static void prepare_arena(uint32_t seed)
{
    uint32_t random_state = 0x9E3779B9u + seed;
    for (uint32_t i = 0; i < GUARD_WORDS + ARENA_WORDS + GUARD_WORDS; i++) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 17;
        random_state ^= random_state << 5;
        guarded_arena[i] = i < GUARD_WORDS || i >= GUARD_WORDS + ARENA_WORDS ? GUARD : random_state;
    }
}

static int guards_hold(void)
{
    for (uint32_t i = 0; i < GUARD_WORDS; i++) {
        if (guarded_arena[i] != GUARD || guarded_arena[GUARD_WORDS + ARENA_WORDS + i] != GUARD) {
            return 0;
        }
    }
    return 1;
}

static uint32_t bytes_read; /* of this image */

static int take(int inputs, int8_t *into, uint32_t bytes)
{
    const uint32_t got = io_read(inputs, into, bytes);
    bytes_read += got;
    return got == bytes;
}

/* One inference: the model's status, or -1 where the file ends before the image does. */
static int infer(int inputs)
{
    void *const arena = guarded_arena + GUARD_WORDS;
#if defined(SUBJECT_PUSHES_ROWS)
    int status = subject_begin_rows(arena);
    for (uint32_t y = 0; y < SUBJECT_INPUT_ROWS && status == (int)SUBJECT_STATUS_OK; y++) {
        const uint32_t which = subject_next_input(arena);
        if (!take(inputs, row, subject_row_bytes(which))) {
            return -1;
        }
        status = subject_push_row(arena, which, row);
    }
    return status == (int)SUBJECT_STATUS_OK ? subject_finish(arena, output) : status;
#elif defined(SUBJECT_RUNS_IN_PLACE)
    for (uint32_t which = 0; which < SUBJECT_INPUTS; which++) {
        if (!take(inputs, subject_image(arena, which), subject_input_bytes[which])) {
            return -1;
        }
    }
    return subject_run_in_place(arena, output);
#else
    return take(inputs, image, sizeof image) ? (int)subject_run(arena, image, output) : -1;
#endif
}

static int run_all(int inputs, int outputs)
{
    uint32_t index = 0;
    for (;; index++) {
        bytes_read = 0;
        prepare_arena(index);
        const int status = infer(inputs);
        if (status < 0 && bytes_read == 0) {
            break;
        }
        if (status < 0) {
            print_line("the inputs end in the middle of input ", index);
            return FAIL_FILE;
        }
        if (status != (int)SUBJECT_STATUS_OK) {
            print_line("the model returned status ", (uint32_t)status);
            return FAIL_STATUS;
        }
        if (!guards_hold()) {
            print_line("the model wrote outside its arena on input ", index);
            return FAIL_MEMORY;
        }
        for (uint32_t i = 0; i < SUBJECT_OUTPUTS; i++) {
            if (io_write(outputs, output + subject_output_places[i], subject_output_bytes[i]) != 0) {
                print_line("cannot write output ", index);
                return FAIL_FILE;
            }
        }
    }
    print_line("runs ", index);
    return 0;
}

static uint32_t *stack_pointer(void)
{
    uint32_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}

int main(int argc, char **argv)
{
    volatile uint32_t *bottom = &__stack_limit;
    (void)argc;
    (void)argv;
    for (volatile uint32_t *here = bottom; here < stack_pointer(); here++) {
        *here = STACK_PAINT;
    }
    const int inputs = io_open_to_read("inputs.bin"), outputs = io_open_to_write("outputs.bin");
    if (inputs < 0 || outputs < 0) {
        io_print("cannot open the files\n");
        return FAIL_FILE;
    }
    const int result = run_all(inputs, outputs);
    io_close(inputs);
    io_close(outputs);
    while (bottom < &__stack_top && *bottom == STACK_PAINT) {
        bottom++;
    }
    if (bottom == &__stack_limit) {
        io_print("the stack reached the variables below it\n");
        return FAIL_MEMORY;
    }
    print_line("stack ", (uint32_t)((uintptr_t)&__stack_top - (uintptr_t)bottom));
    return result;
}
