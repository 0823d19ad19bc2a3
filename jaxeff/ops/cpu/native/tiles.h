// What convolutions share: runs of pixels, what is done with their sums, and copies of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "activations.h"
#include "vectors.h"

namespace jaxeff {

constexpr int64_t kPixels = 8;           // of a tile: enough sums to hide the latency of an addition
constexpr int64_t kCopied = 48 << 10;    // most floats of copied rows: they stay in a core's cache
constexpr int64_t kSmallPiece = 1 << 19;  // multiply-adds below which another thread does not pay
constexpr int64_t kStreamed = 1 << 23;    // floats of an output that no cache keeps until it is read

struct Tap {
  int64_t input;   // from a pixel's place in the copied rows to what the tap sees
  int64_t kernel;  // rows of the kernel before the tap's weights
};

// What is done with sums before they are written.
struct Epilogue {
  const float* factor = nullptr;  // [channels]
  const float* bias = nullptr;    // [channels]
  const float* skip = nullptr;    // like the output
  Activation activation = kIdentity;
  bool is_streamed = false;  // whether whole vectors go to memory past the caches

  // The same from a channel and a place of the output on.
  Epilogue From(int64_t channel, int64_t place) const {
    return {factor ? factor + channel : nullptr, bias ? bias + channel : nullptr,
            skip ? skip + place : nullptr, activation, is_streamed};
  }

  Vector Factor(int64_t width) const {
    return factor ? LoadPart(factor, width) : Vector{} + 1.0f;
  }
  Vector Bias(int64_t width) const { return bias ? LoadPart(bias, width) : Vector{}; }
};

// A run of pixels: from where the inputs are read, and to where sums go.
struct Run {
  const float* input;
  int64_t input_pixel;  // floats from one pixel to the next
  const Tap* taps;
  int64_t num_taps, input_channels;
  const float* kernel;
  int64_t kernel_row;  // floats from the weights of one input channel to those of the next
  float* output;
  int64_t output_pixel;
  int64_t channels;  // to write: the last vector may have fewer than its lanes
  Epilogue epilogue;  // its pointers at the run's first pixel and channel

  void Advance(int64_t pixels) {
    input += pixels * input_pixel;
    output += pixels * output_pixel;
    if (epilogue.skip) epilogue.skip += pixels * output_pixel;
  }
};

// Computes a run in tiles of nearly one size; tiles[n - 1] is the function of n pixels.
inline void InTiles(void (*const* tiles)(const Run&), Run run, int64_t pixels) {
  int64_t count = (pixels + kPixels - 1) / kPixels;
  for (int64_t i = 0, start = 0; i < count; ++i) {
    int64_t end = pixels * (i + 1) / count;
    tiles[end - start - 1](run);
    run.Advance(end - start);
    start = end;
  }
}

template <Activation kind, bool is_streamed, int P, int V>
void Write(const Run& run, const Vector (&sums)[P][V]) {
  Vector factor[V], bias[V];
  int64_t width[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    width[v] = std::min(kLanes, run.channels - v * kLanes);
    Epilogue after = run.epilogue.From(v * kLanes, 0);
    factor[v] = after.Factor(width[v]), bias[v] = after.Bias(width[v]);
  }
  const float* skip = run.epilogue.skip;
  float* output = run.output;
  for (int p = 0; p < P; ++p, output += run.output_pixel) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vector value = sums[p][v] * factor[v] + bias[v];
      if (skip) value += LoadPart(skip + v * kLanes, width[v]);
      value = Activated(kind, value);
      if constexpr (is_streamed)
        Stream(output + v * kLanes, value);
      else
        StorePart(output + v * kLanes, value, width[v]);
    }
    if (skip) skip += run.output_pixel;
  }
}

template <Activation kind, int P, int V>
void FinishWith(const Run& run, const Vector (&sums)[P][V]) {
  run.epilogue.is_streamed ? Write<kind, true>(run, sums) : Write<kind, false>(run, sums);
}

// Writes the sums of a run's first P pixels, after what is left to do. Not inlined: sums are in
// memory then, and registers free for what activations compute with.
template <int P, int V>
__attribute__((noinline)) void Finish(const Run& run, const Vector (&sums)[P][V]) {
  switch (run.epilogue.activation) {
    case kRelu: return FinishWith<kRelu>(run, sums);
    case kRelu6: return FinishWith<kRelu6>(run, sums);
    case kSwish: return FinishWith<kSwish>(run, sums);
    case kHardSwish: return FinishWith<kHardSwish>(run, sums);
    default: return FinishWith<kIdentity>(run, sums);
  }
}

// Whether an output of whole vectors is streamed: a cache would first read what is overwritten.
inline bool IsStreamed(const float* output, int64_t size, int64_t channels) {
  bool is_whole = channels % kLanes == 0 && reinterpret_cast<uintptr_t>(output) % sizeof(Vector) == 0;
  return kCanStream && is_whole && size > kStreamed;
}

struct Image {
  int64_t rows, columns, channels;
  int64_t size() const { return rows * columns * channels; }
};

// Copies rows [first, first + count) and columns [left, left + width) of an image, zeros outside.
inline void CopyRows(const float* image, const Image& shape, int64_t first, int64_t count, int64_t left,
              int64_t width, float* to) {
  int64_t start = std::clamp<int64_t>(-left, 0, width);
  int64_t end = std::clamp<int64_t>(shape.columns - left, start, width);
  int64_t c = shape.channels;
  for (int64_t r = first; r < first + count; ++r, to += width * c) {
    if (r < 0 || r >= shape.rows) {
      std::fill(to, to + width * c, 0.0f);
      continue;
    }
    std::fill(to, to + start * c, 0.0f);
    const float* from = image + (r * shape.columns + left + start) * c;
    std::copy(from, from + (end - start) * c, to + start * c);
    std::fill(to + end * c, to + width * c, 0.0f);
  }
}

// How output rows are divided: so few that what they see stays in cache and that threads have work.
inline int64_t RowsOfPiece(int64_t batch, int64_t rows, int64_t threads, int64_t floats_per_row,
                    int64_t macs_per_row) {
  int64_t most = std::max<int64_t>(1, kCopied / std::max<int64_t>(1, floats_per_row));
  int64_t enough = std::max<int64_t>(1, kSmallPiece / std::max<int64_t>(1, macs_per_row));
  int64_t shared = std::max(enough, (batch * rows + 4 * threads - 1) / (4 * threads));
  return std::min({most, shared, rows});
}

// How a convolution is divided: into rows of images and, where these are few, into `splits` of the
// groups of output channels, so that each of their kernels is read by one thread.
struct Division {
  int64_t rows, pieces, splits;  // rows of a piece; pieces of an image; parts of the groups

  Division(int64_t batch, int64_t all_rows, int64_t groups, int64_t threads, int64_t floats_per_row,
           int64_t macs_per_row) {
    int64_t most = std::clamp<int64_t>(kCopied / std::max<int64_t>(1, floats_per_row), 1, all_rows);
    int64_t fewest = batch * ((all_rows + most - 1) / most);
    int64_t wanted = std::clamp<int64_t>(batch * all_rows * macs_per_row / kSmallPiece, 1, 4 * threads);
    splits = std::clamp<int64_t>((wanted + fewest - 1) / fewest, 1, groups);
    int64_t of_image = (wanted + batch * splits - 1) / (batch * splits);
    rows = std::min(most, std::max<int64_t>(1, (all_rows + of_image - 1) / of_image));
    pieces = (all_rows + rows - 1) / rows;
  }
};

// Memory of the thread, aligned as vectors are.
inline float* Scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + kLanes) memory.resize(floats + kLanes);
  auto place = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>(RoundUp(place, sizeof(Vector)));
}

}  // namespace jaxeff
