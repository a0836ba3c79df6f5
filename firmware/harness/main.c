/* The harness: run a generated model on a file of inputs, on a board or on the host, and watch what it does to memory.
 *
 *   harness INPUTS OUTPUTS [TRACE]
 *
 * INPUTS holds the inputs of any number of runs, SUBJECT_INPUT_BYTES each; OUTPUTS gets SUBJECT_OUTPUT_BYTES for each: all inputs
 * of a run, one after the other, and all its outputs. Exit status 0 means that every run returned SUBJECT_STATUS_OK, wrote nothing outside its arena and its output, and left its input alone.
 *
 * Compile with
 *   SUBJECT_TRACE   TRACE gets a record {uint16 entry, uint16 call, uint32 bytes, bytes...} after every traced call, and
 *                 {0xffff, index of the input, bytes, the output} for every output after every run, all little-endian
 *   SUBJECT_POISON  after every call each byte of the arena that holds nothing a later call may read becomes random
 *   SUBJECT_COUNT   every run lies between subject_begin and subject_end, which do nothing: addresses for whoever counts
 *   SUBJECT_MARK    the same, and every call ends in subject_trace, which does nothing but show its entry
 * SUBJECT_TRACE, SUBJECT_POISON and SUBJECT_MARK need the model compiled with -DNAME_TRACE_FUNCTION=subject_trace.
 */
#include "io.h"

#include <stddef.h>
#include <stdint.h>

enum { GUARD_BYTES = 64 };
#define SUBJECT_OUTPUT_GAP GUARD_BYTES /* between outputs, too */
#include "test/subject.h"

#if defined(SUBJECT_SANITIZE)
#include <sanitizer/asan_interface.h>
#endif

enum {
    GUARD = 0xC5,
    UNTOUCHED = 0x3A,
    STACK_PAINT = 0x5A5AA5A5,
    STACK_PAINT_MOST = 16384, /* bytes below the stack pointer that are painted */
    OWN_STACK_BYTES = 640, /* of this program, and of emulated file input and output */
    OUTPUT_RECORD = 0xffff
};
enum failure { FAIL_USAGE = 1, FAIL_FILE = 2, FAIL_STATUS = 3, FAIL_MEMORY = 4 };

/* The arena and each output, between guards. The arena itself is aligned as the guards' size keeps it. */
static uint8_t guarded_arena[GUARD_BYTES + SUBJECT_ARENA_BYTES + GUARD_BYTES] __attribute__((aligned(16)));
static uint8_t guarded_output[GUARD_BYTES + SUBJECT_OUTPUT_BYTES + SUBJECT_OUTPUTS * GUARD_BYTES] __attribute__((aligned(16)));
static int8_t input[SUBJECT_INPUT_BYTES] __attribute__((aligned(16)));

static uint32_t random_state;

static uint32_t random_word(void)
{
    /* Marsaglia, "Xorshift RNGs", 2003. */
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static void fill(uint8_t *bytes, uint32_t count, uint8_t value)
{
    for (uint32_t i = 0; i < count; i++) {
        bytes[i] = value;
    }
}

static int holds(const uint8_t *bytes, uint32_t count, uint8_t value)
{
    for (uint32_t i = 0; i < count; i++) {
        if (bytes[i] != value) {
            return 0;
        }
    }
    return 1;
}

static uint32_t checksum(const int8_t *bytes, uint32_t count)
{
    uint32_t sum = 2166136261u; /* FNV-1a */
    for (uint32_t i = 0; i < count; i++) {
        sum = (sum ^ (uint8_t)bytes[i]) * 16777619u;
    }
    return sum;
}

static void print_number(uint32_t number)
{
    char digits[11];
    char *first = digits + sizeof digits - 1;
    *first = '\0';
    do {
        *--first = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    io_print(first);
}

static void print_line(const char *what, uint32_t number)
{
    io_print(what);
    print_number(number);
    io_print("\n");
}

static int fail(enum failure failure, const char *what, uint32_t index)
{
    print_line(what, index);
    return (int)failure;
}

#if defined(SUBJECT_TRACE) || defined(SUBJECT_POISON)
static uint32_t steps_done; /* calls of subject_trace in this run */
static int trace_file = -1;
static int trace_failed;

static void write_record(uint32_t entry, uint32_t call, const void *from, uint32_t bytes)
{
    const uint8_t head[8] = {(uint8_t)entry,           (uint8_t)(entry >> 8),   (uint8_t)call,
                             (uint8_t)(call >> 8),     (uint8_t)bytes,          (uint8_t)(bytes >> 8),
                             (uint8_t)(bytes >> 16),   (uint8_t)(bytes >> 24)};
    if (io_write(trace_file, head, sizeof head) != 0 || io_write(trace_file, from, bytes) != 0) {
        trace_failed = 1;
    }
}
#endif

#if defined(SUBJECT_POISON)
static uint8_t live[(SUBJECT_ARENA_BYTES + 7) / 8]; /* one bit a byte of the arena */

/* Step `done` has ended. What the next one may read was born by now and has not died yet: all else becomes random. */
static void poison(uint32_t done)
{
    uint8_t *arena = guarded_arena + GUARD_BYTES;
    fill(live, sizeof live, 0);
    for (uint32_t i = 0; i < SUBJECT_BOXES; i++) {
        if (subject_boxes[i].birth <= done && done < subject_boxes[i].death) {
            const uint32_t end = subject_boxes[i].offset + subject_boxes[i].bytes;
            for (uint32_t byte = subject_boxes[i].offset; byte < end; byte++) {
                live[byte / 8] = (uint8_t)(live[byte / 8] | 1u << byte % 8);
            }
        }
    }
    for (uint32_t byte = 0; byte < SUBJECT_ARENA_BYTES; byte++) {
        if ((live[byte / 8] >> byte % 8 & 1) == 0) {
            arena[byte] = (uint8_t)random_word();
        }
    }
}
#endif

#if defined(SUBJECT_MARK) && !defined(SUBJECT_COUNT)
#define SUBJECT_COUNT
#endif

#if defined(SUBJECT_COUNT)
void subject_begin(void);
void subject_end(void);

__attribute__((noinline)) void subject_begin(void)
{
    __asm__ volatile("");
}

__attribute__((noinline)) void subject_end(void)
{
    __asm__ volatile("");
}
#endif

#if defined(SUBJECT_MARK)
void subject_trace(unsigned entry, unsigned call, const void *rows);

/* An emulator that cannot show registers sees which byte is read here, and so which entry it was. */
extern const volatile uint8_t subject_marks[SUBJECT_ENTRIES];
const volatile uint8_t subject_marks[SUBJECT_ENTRIES] = {0};

__attribute__((noinline)) void subject_trace(unsigned entry, unsigned call, const void *rows)
{
    (void)call;
    (void)rows;
    (void)subject_marks[entry];
}
#elif defined(SUBJECT_TRACE) || defined(SUBJECT_POISON)
void subject_trace(unsigned entry, unsigned call, const void *rows);

void subject_trace(unsigned entry, unsigned call, const void *rows)
{
    if (trace_file >= 0 && subject_trace_bytes[entry] != 0) {
        write_record(entry, call, rows, subject_trace_bytes[entry]);
    }
#if defined(SUBJECT_POISON)
    /* After the last step the run only copies its output, which need not be in a box. */
    if (steps_done + 1 < SUBJECT_STEPS) {
        poison(steps_done);
    }
#endif
    steps_done++;
}
#endif

#if defined(__arm__)
/* Room that the linker keeps for the stack: what the model says that it takes, and the harness below it. */
__attribute__((used, section(".stack_bytes"))) static uint8_t stack_room[SUBJECT_STACK_BYTES + OWN_STACK_BYTES];
#endif

#if defined(__arm__) && !defined(SUBJECT_TRACE) && !defined(SUBJECT_POISON)
#define MEASURE_STACK
extern uint32_t __stack_limit; /* from the linker script */

static uint32_t *stack_pointer(void)
{
    uint32_t *pointer;
    __asm__ volatile("mov %0, sp" : "=r"(pointer));
    return pointer;
}
#endif

/* One inference. *stack_bytes becomes what the model pushed below this function's frame, 0 where that is not measured. */
__attribute__((noinline)) static int measured_run(uint32_t *stack_bytes);

__attribute__((noinline)) static int measured_run(uint32_t *stack_bytes)
{
    void *arena = guarded_arena + GUARD_BYTES;
    int8_t *output = (int8_t *)guarded_output + GUARD_BYTES;
    int status;

#if defined(MEASURE_STACK)
    /* Nothing below the stack pointer is in use while this function calls nobody. */
    volatile uint32_t *const top = stack_pointer();
    volatile uint32_t *bottom = &__stack_limit;
    if ((uintptr_t)top - (uintptr_t)bottom > STACK_PAINT_MOST) {
        bottom = top - STACK_PAINT_MOST / sizeof *top;
    }
    for (volatile uint32_t *here = bottom; here < top; here++) {
        *here = STACK_PAINT;
    }
#endif
#if defined(SUBJECT_COUNT)
    subject_begin();
#endif
    status = subject_run(arena, input, output);
#if defined(SUBJECT_COUNT)
    subject_end();
#endif
#if defined(MEASURE_STACK)
    while (bottom < top && *bottom == STACK_PAINT) {
        bottom++;
    }
    *stack_bytes = (uint32_t)((uintptr_t)top - (uintptr_t)bottom);
#else
    *stack_bytes = 0;
#endif
    return status;
}

/* The bytes of an output. */
static uint8_t *output_of(uint32_t which)
{
    return guarded_output + GUARD_BYTES + subject_output_places[which];
}

static int output_guards_hold(void)
{
    const uint8_t *end = guarded_output; /* of the output before */
    for (uint32_t i = 0; i < SUBJECT_OUTPUTS; i++) {
        if (!holds(end, (uint32_t)(output_of(i) - end), UNTOUCHED)) {
            return 0;
        }
        end = output_of(i) + subject_output_bytes[i];
    }
    return holds(end, GUARD_BYTES, UNTOUCHED);
}

static int run_all(int inputs, int outputs)
{
    const uint32_t arena_end = GUARD_BYTES + SUBJECT_ARENA_BYTES;
    uint32_t stack_most = 0;
    uint32_t index = 0;

    for (;; index++) {
        const uint32_t got = io_read(inputs, input, SUBJECT_INPUT_BYTES);
        if (got == 0) {
            break;
        }
        if (got != SUBJECT_INPUT_BYTES) {
            return fail(FAIL_FILE, "the inputs end in the middle of input ", index);
        }

        random_state = 0x9E3779B9u + index;
        for (uint32_t i = 0; i < sizeof guarded_arena; i++) {
            guarded_arena[i] = i < GUARD_BYTES || i >= arena_end ? (uint8_t)GUARD : (uint8_t)random_word();
        }
        fill(guarded_output, sizeof guarded_output, UNTOUCHED);
        const uint32_t sum = checksum(input, SUBJECT_INPUT_BYTES);
#if defined(SUBJECT_SANITIZE)
        ASAN_POISON_MEMORY_REGION(guarded_arena, GUARD_BYTES);
        ASAN_POISON_MEMORY_REGION(guarded_arena + arena_end, GUARD_BYTES);
        ASAN_POISON_MEMORY_REGION(guarded_output, GUARD_BYTES);
        for (uint32_t i = 0; i < SUBJECT_OUTPUTS; i++) {
            ASAN_POISON_MEMORY_REGION(output_of(i) + subject_output_bytes[i], GUARD_BYTES);
        }
#endif
#if defined(SUBJECT_TRACE) || defined(SUBJECT_POISON)
        steps_done = 0;
#endif
        uint32_t stack_bytes;
        const int status = measured_run(&stack_bytes);
        stack_most = stack_bytes > stack_most ? stack_bytes : stack_most;
#if defined(SUBJECT_SANITIZE)
        ASAN_UNPOISON_MEMORY_REGION(guarded_arena, sizeof guarded_arena);
        ASAN_UNPOISON_MEMORY_REGION(guarded_output, sizeof guarded_output);
#endif

        if (status != (int)SUBJECT_STATUS_OK) {
            print_line("the model returned status ", (uint32_t)status);
            return fail(FAIL_STATUS, "on input ", index);
        }
        if (!holds(guarded_arena, GUARD_BYTES, GUARD) || !holds(guarded_arena + arena_end, GUARD_BYTES, GUARD)) {
            return fail(FAIL_MEMORY, "the model wrote outside its arena on input ", index);
        }
        if (!output_guards_hold()) {
            return fail(FAIL_MEMORY, "the model wrote outside its output on input ", index);
        }
        if (checksum(input, SUBJECT_INPUT_BYTES) != sum) {
            return fail(FAIL_MEMORY, "the model changed the caller's input ", index);
        }
        for (uint32_t i = 0; i < SUBJECT_OUTPUTS; i++) {
            if (io_write(outputs, output_of(i), subject_output_bytes[i]) != 0) {
                return fail(FAIL_FILE, "cannot write output ", index);
            }
        }
#if defined(SUBJECT_TRACE) || defined(SUBJECT_POISON)
        if (steps_done != SUBJECT_STEPS) {
            return fail(FAIL_STATUS, "the model made not SUBJECT_STEPS calls but ", steps_done);
        }
        for (uint32_t i = 0; i < SUBJECT_OUTPUTS && trace_file >= 0; i++) {
            write_record(OUTPUT_RECORD, index, output_of(i), subject_output_bytes[i]);
        }
        if (trace_failed) {
            return fail(FAIL_FILE, "cannot write the trace of input ", index);
        }
#endif
    }
    print_line("runs ", index);
    if (stack_most != 0) {
        print_line("stack ", stack_most);
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *names[3];
    const int count = io_arguments(argc, argv, names, 3);
    if (count < 2) {
        return fail(FAIL_USAGE, "usage: harness INPUTS OUTPUTS [TRACE]; file names given: ", (uint32_t)count);
    }
    const int inputs = io_open_to_read(names[0]);
    const int outputs = io_open_to_write(names[1]);
    if (inputs < 0 || outputs < 0) {
        return fail(FAIL_FILE, "cannot open file ", inputs < 0 ? 1 : 2);
    }
#if defined(SUBJECT_TRACE)
    if (count > 2) {
        trace_file = io_open_to_write(names[2]);
        if (trace_file < 0) {
            return fail(FAIL_FILE, "cannot open file ", 3);
        }
    }
#endif
    const int result = run_all(inputs, outputs);
    io_close(inputs);
    io_close(outputs);
#if defined(SUBJECT_TRACE)
    if (trace_file >= 0) {
        io_close(trace_file);
    }
#endif
    return result;
}
