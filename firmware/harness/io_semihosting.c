/* Files and printing through a debugger or an emulator: "Semihosting for AArch32 and AArch64", Arm, operations by number. */
#include "io.h"

enum operation { SYS_OPEN = 0x01, SYS_CLOSE = 0x02, SYS_WRITE0 = 0x04, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_GET_CMDLINE = 0x15, SYS_EXIT_EXTENDED = 0x20 };
enum mode { READ_BINARY = 1, WRITE_BINARY = 5 };

void io_exit(int code); /* called by start.c */

/* PORTABILITY: pointers are 32 bits here, as on every Cortex-M. */
static uint32_t word(const void *pointer)
{
    return (uint32_t)(uintptr_t)pointer;
}

static uint32_t semihosting(enum operation operation, const void *arguments)
{
    register uint32_t r0 __asm__("r0") = (uint32_t)operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static int open_as(const char *name, enum mode mode)
{
    uint32_t length = 0;
    while (name[length] != '\0') {
        length++;
    }
    const uint32_t arguments[3] = {word(name), (uint32_t)mode, length};
    return (int)semihosting(SYS_OPEN, arguments);
}

int io_arguments(int argc, char **argv, const char *names[], int most)
{
    static char line[256];
    uint32_t arguments[2] = {word(line), sizeof line};
    int count = -1; /* the first word is the program's name */
    char before = ' ';

    (void)argc;
    (void)argv;
    if (semihosting(SYS_GET_CMDLINE, arguments) != 0) {
        return 0;
    }
    line[sizeof line - 1] = '\0';
    for (char *here = line; *here != '\0' && count < most; here++) {
        if (*here != ' ' && before == ' ') {
            if (count >= 0) {
                names[count] = here;
            }
            count++;
        }
        before = *here;
        if (*here == ' ') {
            *here = '\0';
        }
    }
    return count < 0 ? 0 : count;
}

int io_open_to_read(const char *name)
{
    return open_as(name, READ_BINARY);
}

int io_open_to_write(const char *name)
{
    return open_as(name, WRITE_BINARY);
}

uint32_t io_read(int file, void *into, uint32_t bytes)
{
    const uint32_t arguments[3] = {(uint32_t)file, word(into), bytes};
    return bytes - semihosting(SYS_READ, arguments); /* it answers how many bytes are missing */
}

int io_write(int file, const void *from, uint32_t bytes)
{
    const uint32_t arguments[3] = {(uint32_t)file, word(from), bytes};
    return semihosting(SYS_WRITE, arguments) == 0 ? 0 : -1;
}

void io_close(int file)
{
    const uint32_t arguments[1] = {(uint32_t)file};
    (void)semihosting(SYS_CLOSE, arguments);
}

void io_print(const char *text)
{
    (void)semihosting(SYS_WRITE0, text);
}

void io_exit(int code)
{
    const uint32_t arguments[2] = {0x20026, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    (void)semihosting(SYS_EXIT_EXTENDED, arguments);
    for (;;) {
    }
}
