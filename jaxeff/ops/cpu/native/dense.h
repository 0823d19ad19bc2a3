// Tiles of convolutions that add all input channels, and groups of output channels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "tiles.h"
#include "vectors.h"

namespace jaxeff {

template <int P, int V>
void DenseTile(const Run& run) {
  Vector sums[P][V] = {};
  for (int64_t t = 0; t < run.num_taps; ++t) {
    const float* seen = run.input + run.taps[t].input;
    const float* weights = run.kernel + run.taps[t].kernel * run.kernel_row;
    const int64_t pixel = run.input_pixel, row = run.kernel_row;
    for (int64_t c = 0; c < run.input_channels; ++c, weights += row) {
      Vector w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = Load(weights + v * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[p][v] += w[v] * seen[p * pixel + c];
    }
  }
  Finish<P, V>(run, sums);
}

template <int V>
constexpr void (*kDenseTiles[])(const Run&) = {
    DenseTile<1, V>, DenseTile<2, V>, DenseTile<3, V>, DenseTile<4, V>,
    DenseTile<5, V>, DenseTile<6, V>, DenseTile<7, V>, DenseTile<8, V>};

// Output channels are computed in groups of two vectors; the last of them may be one.
constexpr int64_t kGroup = 2 * kLanes;

inline int64_t GroupsOf(int64_t channels) { return (channels + kGroup - 1) / kGroup; }

inline int64_t LanesOf(int64_t channels, int64_t group) {
  return channels - group * kGroup > kLanes ? kGroup : kLanes;
}

// Copies a group of a kernel [rows, channels] as tiles read it: [rows, lanes], filled with zeros.
// copy(row, first channel, how many, to) copies weights.
template <typename Copy>
void Pack(int64_t rows, int64_t channels, int64_t group, const Copy& copy, float* to) {
  int64_t lanes = LanesOf(channels, group), first = group * kGroup;
  for (int64_t row = 0; row < rows; ++row, to += lanes)
    for (int64_t v = 0; v < lanes; v += kLanes)
      copy(row, first + v, std::min(kLanes, channels - first - v), to + v);
}

}  // namespace jaxeff
