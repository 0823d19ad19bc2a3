// Tells on the serial port what is done with a board that has a LSM6DS3 accelerometer, such as
// the Nano 33 IoT. Write the model first:
//     python examples/generate.py examples/arduino/gestures
#include <Arduino_LSM6DS3.h>

#include "gestures.h"

static gestures_model model;
static const int STEPS = 60;
static int steps = 0;

void setup() {
  Serial.begin(115200);
  IMU.begin();
  gestures_init(&model);
}

void loop() {
  float x, y, z;
  if (!IMU.accelerationAvailable()) return;
  IMU.readAcceleration(x, y, z);  // in g
  const int16_t raw[GESTURES_INPUTS] = {int16_t(1000 * x), int16_t(1000 * y), int16_t(1000 * z)};
  int16_t input[GESTURES_INPUTS];
  gestures_normalize(raw, input);
  gestures_step(&model, input);
  if (++steps == STEPS) {
    Serial.println(gestures_classes[gestures_predict(&model)]);
    gestures_init(&model);
    steps = 0;
  }
}
