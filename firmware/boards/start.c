/* From reset to main(), for every Cortex-M: FPU on, .data copied, .bss cleared, main() called, its result handed to the debugger. */
#include <stdint.h>

extern uint32_t __stack_top, __data_load, __data_start, __data_end, __bss_start, __bss_end; /* from the linker script */

int main(int argc, char **argv);
void io_exit(int code);
void io_print(const char *text);
void reset(void);
void fault(void);
void report_fault(const uint32_t *frame);

/* Which board this program is linked for: whoever runs the ELF file reads it there. */
extern const char board_name[];
__attribute__((used, section(".vectors.board"))) const char board_name[] = BOARD_NAME;

__attribute__((noinline)) static void start(void)
{
    const uint32_t *from = &__data_load;
    for (uint32_t *to = &__data_start; to < &__data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = &__bss_start; to < &__bss_end; to++) {
        *to = 0;
    }
    io_exit(main(0, 0));
}

/* The FPU is on before the loops above run: clang makes vector code of them where there are vector instructions. */
void reset(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: full access to CP10 and CP11 */
    __asm__ volatile("dsb\n\tisb" ::: "memory");
#endif
    start();
}

/* Says where a fault happened instead of hanging. `frame` is what the core pushed: r0-r3, r12, lr, pc, xpsr. */
__attribute__((used)) void report_fault(const uint32_t *frame)
{
    static char text[] = "fault at pc 0x00000000\n";
    for (int digit = 0; digit < 8; digit++) {
        text[14 + digit] = "0123456789abcdef"[frame[6] >> (28 - 4 * digit) & 0xF];
    }
    io_print(text);
    io_exit(70);
}

__attribute__((naked)) void fault(void)
{
    __asm__ volatile("mrs r0, msp\n\tldr r1, =report_fault\n\tbx r1\n\t.pool");
}

struct vectors {
    const void *stack;
    void (*handlers[15])(void);
};

extern const struct vectors vectors;
__attribute__((used, section(".vectors"))) const struct vectors vectors = {
    &__stack_top,
    {reset, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault, fault},
};
