// Activations of vectors; they have the numbers that native/convolution.py gives their names.
#pragma once

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace jaxeff {

enum Activation : int64_t { kIdentity, kRelu, kRelu6, kSwish, kHardSwish };

typedef int32_t Whole __attribute__((vector_size(4 * kLanes)));

inline Vector Clamp(Vector x, float low, float high) {
  x = x < low ? Vector{} + low : x;
  return x > high ? Vector{} + high : x;
}

// e^x in single precision; x is first limited to what does not overflow.
inline Vector Exp(Vector x) {
  constexpr float kLog2e = 1.44269504f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: sums with it are rounded to whole numbers
  x = Clamp(x, -87.0f, 87.0f);
  Vector shifted = x * kLog2e + kRound;
  Vector f = x * kLog2e - (shifted - kRound);  // in [-0.5, 0.5]; 2^f by a polynomial
  Vector y = f * 1.326472731e-3f + 9.671512991e-3f;
  y = y * f + 5.550733581e-2f;
  y = y * f + 2.402224243e-1f;
  y = y * f + 6.931470037e-1f;
  y = y * f + 1.0f;
  Whole exponent, bits;  // times 2^n: the lowest bits of `shifted` are those of n
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  std::memcpy(&bits, &y, sizeof(bits));
  bits += exponent << 23;
  std::memcpy(&y, &bits, sizeof(y));
  return y;
}

inline Vector Activated(Activation kind, const Vector& x) {
  switch (kind) {
    case kRelu: return x < 0 ? Vector{} : x;
    case kRelu6: return Clamp(x, 0.0f, 6.0f);
    case kSwish: return x / (1.0f + Exp(-x));
    case kHardSwish: return x * Clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    default: return x;
  }
}

}  // namespace jaxeff
