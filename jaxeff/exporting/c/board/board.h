/* What a program needs of a board: text out, a clock that counts instructions, an end. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void board_write(const char *text);
/* Ticks since the board started; under emulation they follow the instructions executed. */
uint32_t board_ticks(void);
void board_exit(int status);

#endif
