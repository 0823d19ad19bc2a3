/* Classifies a series from standard input: a line of raw numbers per step. */
#include <stdio.h>

#include "gestures.h"

static gestures_model model;

int main(void) {
  int16_t raw[GESTURES_INPUTS], x[GESTURES_INPUTS];
  int count = 0, value;
  gestures_init(&model);
  while (scanf("%d", &value) == 1) {
    raw[count++] = (int16_t)value;
    if (count == GESTURES_INPUTS) {
      gestures_normalize(raw, x);
      gestures_step(&model, x);
      count = 0;
    }
  }
  puts(gestures_classes[gestures_predict(&model)]);
  return 0;
}
