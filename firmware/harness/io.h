/* What the harness needs from the world: a few files and a place to print. io_host.c has stdio, io_semihosting.c a debugger. */
#ifndef IO_H
#define IO_H

#include <stdint.h>

/* Fill names[] with at most `most` words of the command line (the program's name is left out); return how many. */
int io_arguments(int argc, char **argv, const char *names[], int most);

/* Return a handle, or -1. */
int io_open_to_read(const char *name);
int io_open_to_write(const char *name);

/* Return the number of bytes that were read: fewer than `bytes` only at the end of the file. */
uint32_t io_read(int file, void *into, uint32_t bytes);

/* Return 0 when all bytes were written. */
int io_write(int file, const void *from, uint32_t bytes);

void io_close(int file);
void io_print(const char *text);

#endif
