/* Count how often each control-flow edge between basic blocks is taken, for mnet/counting.py, which builds this on first use.
 *
 * Two libraries come from it: a plugin for qemu-system-arm, and with -DFOR_UNICORN the callback of Unicorn's block hook.
 * Counting is on between the block at `begin` and the one at `end`. A block at `mark` closes a segment and says which entry
 * the segment was: what ran since the mark before belongs to it. What follows the last mark of a run has the entry REST.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REST UINT32_MAX

struct edge {
    uint32_t segment, before, block, bytes, instructions, entry;
    uint64_t count;
};

static struct {
    uint32_t begin, end, mark;
} addresses;

static struct edge *table; /* open addressing; a free place has count 0 */
static uint64_t capacity, used;
static struct edge *last; /* a loop takes the same edge again */
static uint32_t *entries;  /* of the segments that are closed */
static uint32_t segment, segments_room;
static uint32_t before;
static int active;

static void *checked(void *memory)
{
    if (memory == NULL) {
        fputs("edge_counter: out of memory\n", stderr);
        abort();
    }
    return memory;
}

static void reset(uint32_t begin, uint32_t end, uint32_t mark)
{
    free(table);
    capacity = 1u << 14;
    table = checked(calloc(capacity, sizeof *table));
    used = 0;
    last = NULL;
    segment = 0;
    before = 0;
    active = 0;
    addresses.begin = begin;
    addresses.end = end;
    addresses.mark = mark;
}

static struct edge *place(struct edge *in, uint64_t room, uint32_t seg, uint32_t from, uint32_t to)
{
    uint32_t hash = from * 2654435761u ^ to * 2246822519u ^ seg * 3266489917u;
    uint64_t at = (hash ^ hash >> 15) & (room - 1);
    while (in[at].count != 0 && (in[at].segment != seg || in[at].before != from || in[at].block != to)) {
        at = (at + 1) & (room - 1);
    }
    return &in[at];
}

static void grow(void)
{
    struct edge *larger = checked(calloc(capacity * 2, sizeof *larger));
    for (uint64_t i = 0; i < capacity; i++) {
        if (table[i].count != 0) {
            *place(larger, capacity * 2, table[i].segment, table[i].before, table[i].block) = table[i];
        }
    }
    free(table);
    table = larger;
    capacity *= 2;
    last = NULL;
}

static void close_segment(uint32_t entry)
{
    if (segment >= segments_room) {
        segments_room = segments_room != 0 ? segments_room * 2 : 4096;
        entries = checked(realloc(entries, segments_room * sizeof *entries));
    }
    entries[segment++] = entry;
}

static void count(uint32_t block, uint32_t bytes, uint32_t instructions)
{
    if (block == addresses.begin) {
        active = 1;
        before = 0;
    }
    if (!active) {
        return;
    }
    if (last == NULL || last->block != block || last->before != before || last->segment != segment) {
        if (used * 2 >= capacity) {
            grow();
        }
        last = place(table, capacity, segment, before, block);
        if (last->count == 0) {
            used++;
            last->segment = segment;
            last->before = before;
            last->block = block;
            last->bytes = bytes;
            last->instructions = instructions;
        }
    }
    last->count++;
    before = block;
    if (block == addresses.end) {
        close_segment(REST);
        active = 0;
    }
}

#if defined(FOR_UNICORN)

typedef int read_register(void *machine, int id, void *value);
static read_register *read_r0;
static int id_of_r0;

void counter_reset(uint32_t begin, uint32_t end, uint32_t mark, void *reader, int r0)
{
    reset(begin, end, mark);
    memcpy(&read_r0, &reader, sizeof read_r0); /* PORTABILITY: POSIX grants that functions fit a void pointer */
    id_of_r0 = r0;
}

void counter_block(void *machine, uint64_t address, uint32_t size, void *unused)
{
    (void)unused;
    count((uint32_t)address, size, 0);
    if (active && address == addresses.mark) {
        uint32_t entry = 0;
        read_r0(machine, id_of_r0, &entry);
        close_segment(entry);
    }
}

uint64_t counter_used(void)
{
    return used;
}

void counter_edges(struct edge *out)
{
    for (uint64_t i = 0; i < capacity; i++) {
        if (table[i].count != 0) {
            *out = table[i];
            out->entry = out->segment < segment ? entries[out->segment] : REST;
            out++;
        }
    }
}

#else

/* The part of qemu-plugin.h that is used here; Debian ships the interface without its header. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void exec_callback(unsigned vcpu, void *data);
typedef void memory_callback(unsigned vcpu, uint32_t info, uint64_t address, void *data);
enum { NO_REGISTERS = 0, READ_AND_WRITE = 3 }; /* with READ alone, 1, QEMU 7.2 never calls */
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, exec_callback *call, int flags, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, memory_callback *call, int flags, int which, void *data);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, void (*call)(qemu_plugin_id_t, void *), void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *insn);

#if !defined(PLUGIN_VERSION)
#define PLUGIN_VERSION 1
#endif

__attribute__((visibility("default"))) int qemu_plugin_version = PLUGIN_VERSION;
__attribute__((visibility("default"))) int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv);

static char out_name[4096];
static uint32_t table_start, table_bytes; /* subject_marks: which byte subject_trace reads is the entry */

struct block {
    uint32_t address, bytes, instructions;
};

static void on_block(unsigned vcpu, void *data)
{
    const struct block *block = data;
    (void)vcpu;
    count(block->address, block->bytes, block->instructions);
}

static void on_mark_read(unsigned vcpu, uint32_t info, uint64_t address, void *data)
{
    (void)vcpu;
    (void)info;
    (void)data;
    if (active && address - table_start < table_bytes) {
        close_segment((uint32_t)(address - table_start));
    }
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    struct block *block = checked(malloc(sizeof *block)); /* lives as long as the translation may run: to the end */
    (void)id;
    block->address = (uint32_t)qemu_plugin_tb_vaddr(tb);
    block->instructions = (uint32_t)qemu_plugin_tb_n_insns(tb);
    block->bytes = 0;
    for (uint32_t i = 0; i < block->instructions; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        block->bytes += (uint32_t)qemu_plugin_insn_size(instruction);
        if (block->address == addresses.mark) {
            qemu_plugin_register_vcpu_mem_cb(instruction, on_mark_read, NO_REGISTERS, READ_AND_WRITE, NULL);
        }
    }
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, NO_REGISTERS, block);
}

static void at_end(qemu_plugin_id_t id, void *data)
{
    FILE *out = fopen(out_name, "w");
    (void)id;
    (void)data;
    if (out == NULL) {
        fprintf(stderr, "edge_counter: cannot write %s\n", out_name);
        return;
    }
    for (uint64_t i = 0; i < capacity; i++) {
        const struct edge *edge = &table[i];
        if (edge->count != 0) {
            const uint32_t entry = edge->segment < segment ? entries[edge->segment] : REST;
            fprintf(out, "%" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu64 "\n", entry, edge->before, edge->block,
                    edge->bytes, edge->instructions, edge->count);
        }
    }
    fclose(out);
}

static uint32_t number(const char *text)
{
    return (uint32_t)strtoul(text, NULL, 0);
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    uint32_t begin = 0, end = 0, mark = 0;
    (void)info;
    for (int i = 0; i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        if (value == NULL) {
            return -1;
        }
        value++;
        if (strncmp(argv[i], "out=", 4) == 0) {
            snprintf(out_name, sizeof out_name, "%s", value);
        } else if (strncmp(argv[i], "begin=", 6) == 0) {
            begin = number(value);
        } else if (strncmp(argv[i], "end=", 4) == 0) {
            end = number(value);
        } else if (strncmp(argv[i], "mark=", 5) == 0) {
            mark = number(value);
        } else if (strncmp(argv[i], "table=", 6) == 0) {
            table_start = number(value);
        } else if (strncmp(argv[i], "entries=", 8) == 0) {
            table_bytes = number(value);
        } else {
            return -1;
        }
    }
    reset(begin, end, mark);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, at_end, NULL);
    return 0;
}

#endif
