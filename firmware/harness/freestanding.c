/* The four functions that a compiler may call though nobody wrote a call, for programs without a C library.
 * The empty asm statements keep it from turning each loop into a call of the function that the loop is in. */
#include <stddef.h>

void *memcpy(void *to, const void *from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);
int memcmp(const void *one, const void *other, size_t bytes);

#define KEEP_LOOP __asm__ volatile("" ::: "memory")

void *memcpy(void *to, const void *from, size_t bytes)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    for (size_t i = 0; i < bytes; i++) {
        t[i] = f[i];
        KEEP_LOOP;
    }
    return to;
}

void *memmove(void *to, const void *from, size_t bytes)
{
    unsigned char *t = to;
    const unsigned char *f = from;
    if (t < f) {
        return memcpy(to, from, bytes);
    }
    for (size_t i = bytes; i > 0; i--) {
        t[i - 1] = f[i - 1];
        KEEP_LOOP;
    }
    return to;
}

void *memset(void *to, int value, size_t bytes)
{
    unsigned char *t = to;
    for (size_t i = 0; i < bytes; i++) {
        t[i] = (unsigned char)value;
        KEEP_LOOP;
    }
    return to;
}

int memcmp(const void *one, const void *other, size_t bytes)
{
    const unsigned char *a = one;
    const unsigned char *b = other;
    for (size_t i = 0; i < bytes; i++) {
        if (a[i] != b[i]) {
            return a[i] < b[i] ? -1 : 1;
        }
        KEEP_LOOP;
    }
    return 0;
}
