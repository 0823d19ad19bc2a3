// Elementary functions of vectors of floats, within a few units in the last place.
#pragma once

#include <cmath>
#include <cstdint>

#include "vectors.h"

namespace jaxeff {

typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));

inline Vector Fill(float value) { return Vector{} + value; }
inline Vector Max(Vector a, Vector b) { return (a > b) | (a != a) ? a : b; }
inline Vector Min(Vector a, Vector b) { return (a < b) | (a != a) ? a : b; }

template <typename Function>
inline Vector EachLane(Vector x, const Function& function) {
  for (int64_t i = 0; i < kLanes; ++i) x[i] = function(x[i]);
  return x;
}

// x between two numbers; NaN stays.
inline Vector Clamp(Vector x, float low, float high) {
#if defined(__AVX512F__)
  __m512 above = _mm512_max_ps(_mm512_set1_ps(low), reinterpret_cast<__m512>(x));
  return reinterpret_cast<Vector>(_mm512_min_ps(_mm512_set1_ps(high), above));
#else
  return x < low ? Fill(low) : x > high ? Fill(high) : x;
#endif
}

// The nearest whole number, of at most 2^22.
inline Vector Round(Vector x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_roundscale_ps(reinterpret_cast<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
#else
  return x + 12582912.0f - 12582912.0f;  // 3 * 2^22
#endif
}

// Values times powers of two, whose exponents are whole numbers in [-151, 129].
inline Vector TimesPower(Vector values, Vector exponents) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(values), reinterpret_cast<__m512>(exponents)));
#else
  // Adding 3 * 2^22 leaves a whole number in the lowest bits.
  Vector shifted = exponents + 12582912.0f;
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  // In two factors: the power of two itself may be beyond the largest number.
  Integers exponent = bits - 0x4B400000, half = exponent >> 1;
  Integers scales[2] = {(half + 127) << 23, (exponent - half + 127) << 23};
  Vector powers[2];
  std::memcpy(powers, scales, sizeof(powers));
  return values * powers[0] * powers[1];
#endif
}

// Powers of two times a polynomial of the rest (Cephes, expf). Beyond the bounds the result is 0, or
// infinite.
inline Vector Exp(Vector x) {
  Vector inside = Clamp(x, -104.0f, 89.0f);
  Vector whole = Round(inside * 1.44269504088896341f);
  Vector r = inside - whole * 0.693359375f - whole * -2.12194440e-4f;
  Vector p = Fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return TimesPower(p, whole);
}

// A quotient of polynomials where the result is not yet 1 (Eigen, XLA).
inline Vector Tanh(Vector x) {
  constexpr float kEnd = 7.90531110763549805f;
  Vector c = Clamp(x, -kEnd, kEnd);
  Vector s = c * c;
  Vector p = Fill(-2.76076847742355e-16f);
  p = p * s + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Vector q = Fill(1.19825839466702e-06f);
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  Vector y = c * p / q;
  return x < -kEnd ? Fill(-1.0f) : x > kEnd ? Fill(1.0f) : y;
}

inline Vector Logistic(Vector x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace jaxeff
