// Planes: a vector of channels of every pixel of an image, side by side, which stay in cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tiles.h"
#include "vectors.h"

// Of small functions that are called at many places of a loop.
#define JAXEFF_INLINE __attribute__((always_inline))

namespace jaxeff {

// Copies [rows, columns, width of `channels`] to a plane with borders of zeros on all sides.
inline void CopyPlane(const float* from, int64_t rows, int64_t columns, int64_t channels,
                      int64_t width, int64_t above, int64_t left, float* to) {
  int64_t row = (columns + 2 * left) * kLanes;
  std::fill(to, to + above * row, 0.0f);
  to += above * row;
  for (int64_t r = 0; r < rows; ++r, to += row) {
    std::fill(to, to + left * kLanes, 0.0f);
    std::fill(to + row - left * kLanes, to + row, 0.0f);
    float* place = to + left * kLanes;
    for (int64_t c = 0; c < columns; ++c, from += channels, place += kLanes)
      Store(place, LoadPart(from, width));
  }
  std::fill(to, to + above * row, 0.0f);
}

// Copies rows [first, first + count) and columns [left, left + across) of `width` channels of an
// image, zeros outside.
inline void CopyPlaneRows(const float* image, const Image& shape, int64_t width, int64_t first,
                          int64_t count, int64_t left, int64_t across, float* to) {
  int64_t start = std::clamp<int64_t>(-left, 0, across);
  int64_t end = std::clamp<int64_t>(shape.columns - left, start, across);
  for (int64_t r = first; r < first + count; ++r, to += across * kLanes) {
    if (r < 0 || r >= shape.rows) {
      std::fill(to, to + across * kLanes, 0.0f);
      continue;
    }
    std::fill(to, to + start * kLanes, 0.0f);
    const float* from = image + (r * shape.columns + left + start) * shape.channels;
    for (int64_t c = start; c < end; ++c, from += shape.channels)
      Store(to + c * kLanes, LoadPart(from, width));
    std::fill(to + end * kLanes, to + across * kLanes, 0.0f);
  }
}

inline int64_t PlaneSize(int64_t rows, int64_t columns) { return rows * columns * kLanes; }

// From one plane to the next: not a power of two, so that cells of one place share no cache set.
inline int64_t PlanesApart(int64_t rows, int64_t columns) {
  return PlaneSize(rows, columns) + 9 * kLanes;
}

// Convolves P neighbouring pixels of a padded plane with N kernels [rows, columns, N, lanes].
template <int N, int P, typename Write>
inline void FieldsTile(const float* seen, int64_t seen_row, int64_t rows, int64_t columns,
                       const float* weights, const Write& write) {
  Vector sums[P][N] = {};
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c, weights += N * kLanes) {
      const float* from = seen + r * seen_row + c * kLanes;
      Vector w[N];
#pragma GCC unroll 4
      for (int f = 0; f < N; ++f) w[f] = Load(weights + f * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        Vector value = Load(from + p * kLanes);
#pragma GCC unroll 4
        for (int f = 0; f < N; ++f) sums[p][f] += w[f] * value;
      }
    }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int f = 0; f < N; ++f) {
      Vector value = sums[p][f];  // a copy, so that the sums stay in registers
      write(p, f, value);
    }
}

// Convolves a whole padded plane with N kernels; write(pixel, field, value) takes the values.
template <int N, typename Write>
void Fields(const float* padded, int64_t rows, int64_t columns, int64_t side, int64_t across,
            const float* weights, const Write& write) {
  constexpr int kTogether = N == 4 ? 4 : 8;
  int64_t seen_row = (columns + across - 1) * kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    const float* seen = padded + r * seen_row;
    int64_t c = 0;
    for (; c + kTogether <= columns; c += kTogether)
      FieldsTile<N, kTogether>(seen + c * kLanes, seen_row, side, across, weights,
                               [&](int p, int f, const Vector& value) JAXEFF_INLINE {
                                 write(r * columns + c + p, f, value);
                               });
    for (; c < columns; ++c)
      FieldsTile<N, 1>(seen + c * kLanes, seen_row, side, across, weights,
                       [&](int, int f, const Vector& value) JAXEFF_INLINE { write(r * columns + c, f, value); });
  }
}

// Convolves a vector of channels of P neighbouring pixels, every channel by itself.
template <int P>
void DepthwiseTile(const Run& run) {
  Vector sums[P][1] = {};
  for (int64_t t = 0; t < run.num_taps; ++t) {
    const float* seen = run.input + run.taps[t].input;
    Vector weight = Load(run.kernel + run.taps[t].kernel * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p][0] += weight * Load(seen + p * run.input_pixel);
  }
  Finish<P, 1>(run, sums);
}

constexpr void (*kDepthwiseTiles[])(const Run&) = {
    DepthwiseTile<1>, DepthwiseTile<2>, DepthwiseTile<3>, DepthwiseTile<4>,
    DepthwiseTile<5>, DepthwiseTile<6>, DepthwiseTile<7>, DepthwiseTile<8>};

// Copies kernels [taps, 1, fields * channels] to [taps, fields, lanes], for `width` channels from
// `first` on.
inline void CopyKernels(const float* kernel, int64_t taps, int64_t fields, int64_t channels,
                        int64_t first, int64_t width, float* to) {
  for (int64_t i = 0; i < taps * fields; ++i, to += kLanes)
    Store(to, LoadPart(kernel + i * channels + first, width));
}

// The same of one kernel [taps, 1, channels], times factors [channels] if there are any.
inline void CopyScaledKernel(const float* kernel, int64_t taps, int64_t channels, int64_t first,
                             const float* factor, float* to) {
  int64_t width = std::min(kLanes, channels - first);
  CopyKernels(kernel, taps, 1, channels, first, width, to);
  if (!factor) return;
  Vector by = LoadPart(factor + first, width);
  for (int64_t i = 0; i < taps; ++i) Store(to + i * kLanes, Load(to + i * kLanes) * by);
}

}  // namespace jaxeff
