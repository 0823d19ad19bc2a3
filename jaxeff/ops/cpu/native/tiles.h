// What convolutions share: runs of pixels, what is done with their sums, and copies of rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace jaxeff {

constexpr int64_t kPixels = 8;           // of a tile: enough sums to hide the latency of an addition
constexpr int64_t kCopied = 48 << 10;    // most floats of copied rows: they stay in a core's cache
constexpr int64_t kSmallPiece = 1 << 19;  // multiply-adds below which another thread does not pay

struct Tap {
  int64_t input;   // from a pixel's place in the copied rows to what the tap sees
  int64_t kernel;  // to the tap's weights
};

// What is done with sums before they are written.
struct Epilogue {
  const float* bias = nullptr;  // [channels]
  const float* skip = nullptr;  // like the output
  bool relu = false;
};

// A run of pixels: from where the inputs are read, and to where sums go.
struct Run {
  const float* input;
  int64_t input_pixel;  // floats from one pixel to the next
  const Tap* taps;
  int64_t num_taps, input_channels;
  const float* kernel;
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

// Writes the sums of a run's first P pixels, after what is left to do.
template <int P, int V>
void Finish(const Run& run, const Vector (&sums)[P][V]) {
  const Epilogue& after = run.epilogue;
  if (run.channels < V * kLanes) {
    for (int p = 0; p < P; ++p) {
      float values[V * kLanes];
      for (int v = 0; v < V; ++v) Store(values + v * kLanes, sums[p][v]);
      for (int64_t c = 0; c < run.channels; ++c) {
        float value = values[c];
        if (after.bias) value += after.bias[c];
        if (after.skip) value += after.skip[p * run.output_pixel + c];
        run.output[p * run.output_pixel + c] = after.relu && value < 0 ? 0 : value;
      }
    }
    return;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vector value = sums[p][v];
      int64_t place = p * run.output_pixel + v * kLanes;
      if (after.bias) value += Load(after.bias + v * kLanes);
      if (after.skip) value += Load(after.skip + place);
      if (after.relu) value = value < 0 ? Vector{} : value;
      Store(run.output + place, value);
    }
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

inline float* Scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

}  // namespace jaxeff
