// Vectors of floats, as wide as the processor's registers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace jaxeff {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));

inline Vector Load(const float* from) {
  Vector values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

inline void Store(float* to, const Vector& values) { std::memcpy(to, &values, sizeof(values)); }

// Reads and writes the first `width` lanes; the others are zeros, and not written.
inline Vector LoadPart(const float* from, int64_t width) {
  if (width == kLanes) return Load(from);
#if defined(__AVX512F__)
  return reinterpret_cast<Vector>(_mm512_maskz_loadu_ps((1u << width) - 1, from));
#else
  Vector values{};
  std::memcpy(&values, from, 4 * width);
  return values;
#endif
}

inline void StorePart(float* to, const Vector& values, int64_t width) {
  if (width == kLanes) return Store(to, values);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, (1u << width) - 1, reinterpret_cast<__m512>(values));
#else
  std::memcpy(to, &values, 4 * width);
#endif
}

// Writes a whole vector to an aligned place past the caches; EndStream() before others read it.
#if defined(__AVX512F__)
constexpr bool kCanStream = true;
inline void Stream(float* to, const Vector& values) {
  _mm512_stream_ps(to, reinterpret_cast<__m512>(values));
}
inline void EndStream() { _mm_sfence(); }
#else
constexpr bool kCanStream = false;
inline void Stream(float* to, const Vector& values) { Store(to, values); }
inline void EndStream() {}
#endif

inline int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

}  // namespace jaxeff
