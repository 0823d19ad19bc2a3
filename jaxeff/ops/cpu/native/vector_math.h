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

// The polynomial of exp(r) for r of at most log(2) / 2 (Cephes, expf).
inline Vector ExpNearZero(Vector r) {
  Vector p = Fill(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * r * r + r + 1.0f;
}

// Powers of two times a polynomial of the rest.
#if defined(__AVX512F__)
inline Vector Exp(Vector x) {
  __m512 low = _mm512_set1_ps(-87.33654f), high = _mm512_set1_ps(89.0f);
  __m512 inside = _mm512_min_ps(high, _mm512_max_ps(low, reinterpret_cast<__m512>(x)));
  __m512 whole = _mm512_roundscale_ps(inside * 1.44269504088896341f, _MM_FROUND_TO_NEAREST_INT);
  Vector n = reinterpret_cast<Vector>(whole);
  Vector r = reinterpret_cast<Vector>(inside) - n * 0.693359375f - n * -2.12194440e-4f;
  __m512 p = reinterpret_cast<__m512>(ExpNearZero(r));
  __mmask16 is_normal = _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), low, _CMP_NLT_UQ);
  return reinterpret_cast<Vector>(_mm512_maskz_scalef_ps(is_normal, p, whole));
}
#else
inline Vector Exp(Vector x) {
  Vector inside = x < -87.33654f ? Fill(-87.33654f) : x > 88.72284f ? Fill(88.72284f) : x;
  // Adding 3 * 2^22 rounds to an integer, which is then in the lowest bits.
  constexpr float kRound = 12582912.0f;
  Vector shifted = inside * 1.44269504088896341f + kRound;
  Vector whole = shifted - kRound;
  Vector r = inside - whole * 0.693359375f - whole * -2.12194440e-4f;
  Vector p = ExpNearZero(r);
  Integers bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  // In two factors: the power of two itself may be beyond the largest number.
  Integers exponent = bits - 0x4B400000, half = exponent >> 1;
  Integers scales[2] = {(half + 127) << 23, (exponent - half + 127) << 23};
  Vector powers[2];
  std::memcpy(powers, scales, sizeof(powers));
  Vector y = p * powers[0] * powers[1];
  y = x > 88.72284f ? Fill(INFINITY) : y;
  return x < -87.33654f ? Vector{} : y;
}
#endif

// A quotient of polynomials on the range where the result is not yet 1 (Eigen, XLA).
inline Vector Tanh(Vector x) {
  Vector c = x < -7.90531110763549805f ? Fill(-7.90531110763549805f)
             : x > 7.90531110763549805f ? Fill(7.90531110763549805f)
                                        : x;
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
  return c * p / q;
}

inline Vector Logistic(Vector x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace jaxeff
