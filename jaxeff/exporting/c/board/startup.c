/* Bare-metal start of a Cortex-M under an emulator with semihosting. */
#include "board.h"

extern uint32_t stack_top, data_load, data_start, data_end, bss_start, bss_end;
int main(void);

#define SYSTICK_CONTROL (*(volatile uint32_t *)0xE000E010)
#define SYSTICK_RELOAD (*(volatile uint32_t *)0xE000E014)
#define SYSTICK_VALUE (*(volatile uint32_t *)0xE000E018)
#define COPROCESSOR_ACCESS (*(volatile uint32_t *)0xE000ED88)
#define SYSTICK_LARGEST 0xFFFFFFu

static void semihosting(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

void board_write(const char *text) { semihosting(0x04, text); }

/* The timer counts 24 bits down. */
uint32_t board_ticks(void) { return SYSTICK_LARGEST - SYSTICK_VALUE; }

void board_exit(int status) {
  const uint32_t block[2] = {0x20026, (uint32_t)status};
  semihosting(0x20, block);
  for (;;) {
  }
}

void reset_handler(void) {
  const uint32_t *from = &data_load;
  for (uint32_t *to = &data_start; to < &data_end;) *to++ = *from++;
  for (uint32_t *to = &bss_start; to < &bss_end;) *to++ = 0;
  COPROCESSOR_ACCESS |= 0xFu << 20; /* the floating-point unit */
  __asm__ volatile("dsb\n\tisb");
  SYSTICK_RELOAD = SYSTICK_LARGEST;
  SYSTICK_VALUE = 0;
  SYSTICK_CONTROL = 5; /* on, at the processor's clock */
  board_exit(main());
}

static void fault(void) { board_exit(99); }

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    &stack_top, reset_handler, fault, fault, fault, fault, fault};
