// What the sketch uses of the sensor's library.
#pragma once
#include "Arduino.h"

struct LSM6DS3Class {
  int begin();
  int accelerationAvailable();
  int readAcceleration(float &x, float &y, float &z);
};
extern LSM6DS3Class IMU;
