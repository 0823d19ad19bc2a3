// What the sketch uses of Arduino's core, to compile it without a board's files.
#pragma once
#include <stdint.h>

struct SerialPort {
  void begin(unsigned long baud);
  void println(const char *line);
};
extern SerialPort Serial;
