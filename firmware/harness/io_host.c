/* Files and printing on a computer. */
#include "io.h"

#include <stdio.h>

enum { MOST_FILES = 4 };
static FILE *files[MOST_FILES];

static int open_as(const char *name, const char *mode)
{
    for (int file = 0; file < MOST_FILES; file++) {
        if (files[file] == NULL) {
            files[file] = fopen(name, mode);
            return files[file] != NULL ? file : -1;
        }
    }
    return -1;
}

int io_arguments(int argc, char **argv, const char *names[], int most)
{
    int count = 0;
    while (count < most && count + 1 < argc) {
        names[count] = argv[count + 1];
        count++;
    }
    return count;
}

int io_open_to_read(const char *name)
{
    return open_as(name, "rb");
}

int io_open_to_write(const char *name)
{
    return open_as(name, "wb");
}

uint32_t io_read(int file, void *into, uint32_t bytes)
{
    return (uint32_t)fread(into, 1, bytes, files[file]);
}

int io_write(int file, const void *from, uint32_t bytes)
{
    return fwrite(from, 1, bytes, files[file]) == bytes ? 0 : -1;
}

void io_close(int file)
{
    fclose(files[file]);
    files[file] = NULL;
}

void io_print(const char *text)
{
    fputs(text, stdout);
    fflush(stdout);
}
