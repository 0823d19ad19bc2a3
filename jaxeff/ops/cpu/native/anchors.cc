// Bilinear interpolation from anchors, mixed with a depthwise convolution at every pixel; skip and
// ReLU are part of the pass. See jaxeff/ops/anchors.py.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "parallel.h"
#include "planes.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

// The values between `here` and `ahead`, `offset` of `stride` pixels after the first.
Vector Between(const Vector& here, const Vector& ahead, int64_t offset, int64_t stride) {
  float part = static_cast<float>(offset) / stride;
  return offset ? (1.0f - part) * here + part * ahead : here;
}

// Interpolates one row: first between two rows of anchors, then along it. `line` has the anchors'
// columns.
void FillRow(const float* anchors, const Image& shape, int64_t width, int64_t row, int64_t columns,
             int64_t stride, float* line, float* filled) {
  int64_t first = row / stride, second = std::min(first + 1, shape.rows - 1);
  const float* here = anchors + first * shape.columns * shape.channels;
  const float* ahead = anchors + second * shape.columns * shape.channels;
  for (int64_t c = 0; c < shape.columns; ++c)
    Store(line + c * kLanes, Between(LoadPart(here + c * shape.channels, width),
                                     LoadPart(ahead + c * shape.channels, width), row % stride, stride));
  for (int64_t c = 0, j = 0; c < columns; ++j) {
    Vector value = Load(line + j * kLanes);
    Vector next = Load(line + std::min(j + 1, shape.columns - 1) * kLanes);
    for (int64_t offset = 0; offset < stride && c < columns; ++offset, ++c)
      Store(filled + c * kLanes, Between(value, next, offset, stride));
  }
}

ffi::Error MixedAnchors(ffi::ThreadPool pool, Array anchors, Array x, Array kernel, Array share,
                        Array scale, Array offset, Array mean, Array variance, Array skip, Result y,
                        int64_t stride, bool blend, bool relu, float epsilon, int64_t threads) {
  auto coarse = anchors.dimensions(), fine = x.dimensions(), k = kernel.dimensions();
  Image from{coarse[1], coarse[2], coarse[3]}, to{fine[1], fine[2], fine[3]};
  int64_t side = k[0], across = k[1], channels = to.channels, columns = to.columns;
  int64_t blocks = (channels + kLanes - 1) / kLanes, seen_row = (columns + across - 1) * kLanes;
  int64_t rows = RowsOfPiece(fine[0] * blocks, to.rows, threads, seen_row,
                             columns * side * across * kLanes);
  int64_t pieces = (to.rows + rows - 1) / rows;
  Affine affine(scale, offset, mean, variance, epsilon);
  ForEachPiece(pool, threads, fine[0] * blocks * pieces, [&](int64_t piece) {
    int64_t n = piece / (blocks * pieces), c0 = piece / pieces % blocks * kLanes;
    int64_t start = piece % pieces * rows, count = std::min(rows, to.rows - start);
    int64_t width = std::min(kLanes, channels - c0);
    float* padded = Scratch((rows + side) * seen_row + (side * across + from.columns + columns) * kLanes);
    float* weights = padded + (rows + side) * seen_row;
    float *line = weights + side * across * kLanes, *filled = line + from.columns * kLanes;
    CopyScaledKernel(kernel.typed_data(), side * across, channels, c0, affine.Factor(), weights);
    CopyPlaneRows(x.typed_data() + n * to.size() + c0, to, width, start - side / 2, count + side - 1,
                  -(across / 2), columns + across - 1, padded);
    Vector shift = affine.Bias() ? LoadPart(affine.Bias() + c0, width) : Vector{};
    Vector part = LoadPart(share.typed_data() + c0, width), rest = 1.0f - part;
    for (int64_t r = 0; r < count; ++r) {
      FillRow(anchors.typed_data() + n * from.size() + c0, from, width, start + r, columns, stride,
              line, filled);
      int64_t place = ((n * to.rows + start + r) * columns) * channels + c0;
      float* out = y->typed_data() + place;
      const float* added = IfAny(skip) ? IfAny(skip) + place : nullptr;
      int64_t first = 0;
      auto write = [&](int64_t p, int, const Vector& value) JAXEFF_INLINE {
        int64_t c = first + p;
        Vector mixed = part * Load(filled + c * kLanes) + rest * (value + shift);
        if (added) mixed += LoadPart(added + c * channels, width);
        if (relu) mixed = mixed < 0 ? Vector{} : mixed;
        StorePart(out + c * channels, mixed, width);
      };
      const float* seen = padded + r * seen_row;
      for (; first + kPixels <= columns; first += kPixels)
        FieldsTile<1, kPixels>(seen + first * kLanes, seen_row, side, across, weights, write);
      for (; first < columns; ++first)
        FieldsTile<1, 1>(seen + first * kLanes, seen_row, side, across, weights, write);
      if (blend || (start + r) % stride) continue;
      for (int64_t c = 0; c < columns; c += stride) {  // anchors keep their values
        Vector value = Load(filled + c * kLanes);
        if (added) value += LoadPart(added + c * channels, width);
        if (relu) value = value < 0 ? Vector{} : value;
        StorePart(out + c * channels, value, width);
      }
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
