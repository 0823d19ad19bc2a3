// Bilinear interpolation from anchors, mixed with a depthwise convolution at every pixel; skip and
// ReLU are part of the pass. See jaxeff/ops/anchors.py.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arrays.h"
#include "parallel.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

// Interpolates one row: first between two rows of anchors, then along it. Both scratch rows have a
// vector more than their pixels: what a pixel's last vector has too much, the next one overwrites.
void FillRow(const float* anchors, const Image shape, int64_t row, int64_t columns,
             const float* parts, int64_t stride, float* line, float* filled) {
  const int64_t channels = shape.channels, size = shape.columns * channels;
  const int64_t first = row / stride, second = std::min(first + 1, shape.rows - 1);
  const float *here = anchors + first * size, *ahead = anchors + second * size;
  const float part = parts[row % stride];
  for (int64_t i = 0; i < size; i += kLanes) {
    int64_t width = std::min(kLanes, size - i);
    Vector value = LoadPart(here + i, width);
    if (part != 0) value = (1.0f - part) * value + part * LoadPart(ahead + i, width);
    Store(line + i, value);
  }
  for (int64_t j = 0, c = 0; c < columns; ++j) {
    const float* value = line + j * channels;
    const float* next = line + std::min(j + 1, shape.columns - 1) * channels;
    for (int64_t i = 0; i < channels; i += kLanes) Store(filled + i, Load(value + i));
    filled += channels, ++c;
    for (int64_t offset = 1; offset < stride && c < columns; ++offset, ++c, filled += channels) {
      const float after = parts[offset], before = 1.0f - after;
      for (int64_t i = 0; i < channels; i += kLanes)
        Store(filled + i, before * Load(value + i) + after * Load(next + i));
    }
  }
}

// What is repeated along a row, whose pixels follow each other without a gap: `size` floats, whole
// vectors and whole distances between anchors, or all of a shorter row.
struct Pattern {
  int64_t size;
  std::vector<float> weights;  // [taps, size], with the share and the normalisation in them
  std::vector<float> bias, share, is_anchor;

  Pattern(const float* kernel, int64_t taps, int64_t channels, int64_t stride, int64_t row_size,
          const float* shares, const Affine& affine)
      : size(std::min(std::lcm(channels * stride, kLanes), RoundUp(row_size, kLanes))),
        weights(taps * size), bias(size), share(size), is_anchor(size) {
    std::copy_n(shares, channels, share.data());
    for (int64_t c = 0; c < channels; ++c) {
      float rest = 1.0f - shares[c];
      bias[c] = affine.Bias() ? affine.Bias()[c] * rest : 0.0f;
      if (affine.Factor()) rest *= affine.Factor()[c];
      for (int64_t t = 0; t < taps; ++t) weights[t * size + c] = kernel[t * channels + c] * rest;
    }
    auto repeat = [&](float* row) {
      for (int64_t i = channels; i < size; i += channels)
        std::copy_n(row, std::min(channels, size - i), row + i);
    };
    for (int64_t t = 0; t < taps; ++t) repeat(&weights[t * size]);
    repeat(bias.data());
    repeat(share.data());
    for (int64_t i = 0; i < size; i += channels * stride)
      std::fill_n(is_anchor.data() + i, std::min(channels, size - i), 1.0f);
  }
};

// A row of the mixture.
struct MixedRow {
  const float* seen;  // rows between zeros
  const int64_t* taps;
  int64_t num_taps;
  const Pattern* pattern;
  const float *filled, *skip;
  float* out;
  int64_t size;
  bool has_anchors, relu;
};

// Of P vectors from `place` on, which are as far from each other as the pattern is long.
template <int P>
void MixedTile(const MixedRow& row, int64_t place) {
  const int64_t step = row.pattern->size, lane = place % step;
  Vector sums[P] = {};
  const float *weight = row.pattern->weights.data() + lane, *seen = row.seen + place;
  for (int64_t t = 0; t < row.num_taps; ++t, weight += step) {
    Vector w = Load(weight);
    const float* from = seen + row.taps[t];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] += w * Load(from + p * step);
  }
  Vector share = Load(&row.pattern->share[lane]), bias = Load(&row.pattern->bias[lane]);
  const Vector keep = row.has_anchors ? Load(&row.pattern->is_anchor[lane]) : Vector{};
  const float *filled = row.filled + place, *skip = row.skip ? row.skip + place : nullptr;
  float* out = row.out + place;
  const int64_t left = row.size - place;
  const bool relu = row.relu;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    int64_t width = std::min(kLanes, left - p * step);
    Vector value = Load(filled + p * step);
    Vector mixed = keep != 0 ? value : share * value + (sums[p] + bias);
    if (skip) mixed += LoadPart(skip + p * step, width);
    if (relu) mixed = mixed < 0 ? Vector{} : mixed;
    StorePart(out + p * step, mixed, width);
  }
}

void Mix(const MixedRow& row) {
  constexpr void (*kTiles[])(const MixedRow&, int64_t) = {
      MixedTile<1>, MixedTile<2>, MixedTile<3>, MixedTile<4>,
      MixedTile<5>, MixedTile<6>, MixedTile<7>, MixedTile<8>};
  const int64_t step = row.pattern->size;
  for (int64_t lane = 0; lane < std::min(step, row.size); lane += kLanes) {
    int64_t steps = (row.size - lane + step - 1) / step, tiles = (steps + kPixels - 1) / kPixels;
    for (int64_t i = 0, start = 0; i < tiles; ++i) {  // of nearly one size
      int64_t stop = steps * (i + 1) / tiles;
      kTiles[stop - start - 1](row, lane + start * step);
      start = stop;
    }
  }
}

ffi::Error MixedAnchors(ffi::ThreadPool pool, Array anchors, Array x, Array kernel, Array share,
                        Array scale, Array offset, Array mean, Array variance, Array skip, Result y,
                        int64_t stride, bool blend, bool relu, float epsilon, int64_t threads) {
  auto coarse = anchors.dimensions(), fine = x.dimensions(), k = kernel.dimensions();
  Image from{coarse[1], coarse[2], coarse[3]}, to{fine[1], fine[2], fine[3]};
  int64_t side = k[0], across = k[1], channels = to.channels, columns = to.columns;
  int64_t width = columns + across - 1, seen_row = width * channels, row_size = columns * channels;
  int64_t rows = RowsOfPiece(fine[0], to.rows, threads, seen_row, row_size * side * across);
  int64_t pieces = (to.rows + rows - 1) / rows;
  Affine affine(scale, offset, mean, variance, epsilon);
  Pattern pattern(kernel.typed_data(), side * across, channels, stride, row_size,
                  share.typed_data(), affine);
  std::vector<float> parts;
  for (int64_t offset = 0; offset < stride; ++offset) parts.push_back(static_cast<float>(offset) / stride);
  std::vector<int64_t> taps;
  for (int64_t t = 0; t < side * across; ++t)
    taps.push_back(t / across * seen_row + t % across * channels);
  ForEachPiece(pool, threads, fine[0] * pieces, [&](int64_t piece) {
    int64_t n = piece / pieces, start = piece % pieces * rows;
    int64_t count = std::min(rows, to.rows - start);
    int64_t copied = RoundUp((count + side - 1) * seen_row + kLanes, kLanes);
    int64_t filled_size = RoundUp(row_size + kLanes, kLanes);
    float* padded = Scratch(copied + filled_size + from.columns * channels + kLanes);
    float *filled = padded + copied, *line = filled + filled_size;
    CopyRows(x.typed_data() + n * to.size(), to, start - side / 2, count + side - 1, -(across / 2),
             width, padded);
    for (int64_t r = 0; r < count; ++r) {
      FillRow(anchors.typed_data() + n * from.size(), from, start + r, columns, parts.data(), stride, line, filled);
      int64_t place = n * to.size() + (start + r) * row_size;
      bool has_anchors = !blend && (start + r) % stride == 0;
      const float* added = IfAny(skip) ? IfAny(skip) + place : nullptr;
      Mix({padded + r * seen_row, taps.data(), side * across, &pattern, filled, added,
           y->typed_data() + place, row_size, has_anchors, relu});
    }
  });
  return ffi::Error::Success();
}

// Every stride-th pixel along both axes.
ffi::Error SampledAnchors(ffi::ThreadPool pool, Array x, Result y, int64_t stride,
                          int64_t threads) {
  auto fine = x.dimensions(), coarse = y->dimensions();
  int64_t rows = coarse[1], columns = coarse[2], channels = coarse[3];
  int64_t enough = std::max<int64_t>(1, (1 << 15) / (columns * channels));
  int64_t all = coarse[0] * rows;
  ForEachPiece(pool, threads, (all + enough - 1) / enough, [&](int64_t piece) {
    for (int64_t r = piece * enough; r < std::min(all, (piece + 1) * enough); ++r) {
      int64_t row = r / rows * fine[1] + r % rows * stride;
      const float* from = x.typed_data() + row * fine[2] * channels;
      float* to = y->typed_data() + r * columns * channels;
      for (int64_t c = 0; c < columns; ++c, from += stride * channels, to += channels)
        std::copy_n(from, channels, to);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_mixed_anchors, MixedAnchors,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride")
                                  .Attr<bool>("blend")
                                  .Attr<bool>("relu")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_sampled_anchors, SampledAnchors,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
