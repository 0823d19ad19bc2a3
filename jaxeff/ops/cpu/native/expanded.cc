// 1x1 convolutions to more channels with the depthwise convolution that follows them, in float32.
//
// A few rows of two vectors of the inner channels are computed at a time and convolved at once, so
// that they stay in a core's cache and the inner channels are never written as a whole.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "arrays.h"
#include "dense.h"
#include "parallel.h"
#include "planes.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

// Inner rows of an image, of one group of channels, between zeros.
struct Expansion {
  Image seen;
  int64_t left, width, lanes;
  Run run;        // kernel, channels and what follows are those of the group
  float* joined;  // of narrow images: all their pixels, without zeros

  bool is_narrow() const { return joined; }

  void Pixels(const float* from, int64_t pixels, float* to) const {
    Run all = run;
    all.input = from;
    all.output = to;
    InTiles(lanes == kGroup ? kDenseTiles<2> : kDenseTiles<1>, all, pixels);
  }

  // Computes rows [top, top + count) of an image.
  void Rows(const float* image, int64_t top, int64_t count, float* to) const {
    int64_t row = width * lanes, seen_row = seen.columns * seen.channels;
    int64_t used = std::min(seen.columns, width - left), right = (left + used) * lanes;
    int64_t first = std::clamp<int64_t>(-top, 0, count);
    int64_t last = std::clamp<int64_t>(seen.rows - top, first, count);
    const float* from = image + (top + first) * seen_row;
    std::fill(to, to + first * row, 0.0f);
    std::fill(to + last * row, to + count * row, 0.0f);
    if (is_narrow()) Pixels(from, (last - first) * seen.columns, joined);
    for (int64_t r = first; r < last; ++r) {
      float* place = to + r * row;
      std::fill(place, place + left * lanes, 0.0f);
      std::fill(place + right, place + row, 0.0f);
      int64_t number = r - first;
      if (is_narrow())
        std::copy_n(joined + number * seen.columns * lanes, used * lanes, place + left * lanes);
      else
        Pixels(from + number * seen_row, used, place + left * lanes);
    }
  }
};

ffi::Error ExpandedDepthwise(ffi::ThreadPool pool, Array x, Array expansion, Array kernel,
                             Array inner_scale, Array inner_offset, Array inner_mean,
                             Array inner_variance, Array scale, Array offset, Array mean,
                             Array variance, Result y, int64_t strides, int64_t activation,
                             float inner_epsilon, float epsilon, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t side = k[0], across = k[1], channels = made.channels, inputs = seen.channels;
  int64_t taps = side * across, groups = GroupsOf(channels), width = (made.columns - 1) * strides + across;
  Affine inner(inner_scale, inner_offset, inner_mean, inner_variance, inner_epsilon);
  Affine affine(scale, offset, mean, variance, epsilon);
  Epilogue between = {inner.Factor(), inner.Bias(), nullptr, static_cast<Activation>(activation)};
  Epilogue epilogue = {nullptr, affine.Bias(), nullptr, static_cast<Activation>(activation)};
  epilogue.is_streamed = IsStreamed(y->typed_data(), y->element_count(), channels);
  std::unique_ptr<float[]> packed(new float[groups * inputs * kGroup]);
  std::vector<float> weights(RoundUp(channels, kGroup) * taps);
  for (int64_t group = 0; group < groups; ++group)
    Pack(inputs, channels, group, [&](int64_t row, int64_t first, int64_t count, float* to) {
      Store(to, LoadPart(expansion.typed_data() + row * channels + first, count));
    }, &packed[group * inputs * kGroup]);
  for (int64_t c = 0; c < channels; c += kLanes)
    CopyScaledKernel(kernel.typed_data(), taps, channels, c, affine.Factor(), &weights[c * taps]);
  int64_t macs = made.columns * channels * (taps + strides * strides * inputs);
  int64_t rows = RowsOfPiece(in[0], made.rows, threads, 1, macs);
  int64_t pieces = (made.rows + rows - 1) / rows;
  // Small images are computed together, one group after the other, whose kernel stays in cache.
  int64_t most = std::min(kCopied / seen.size(), in[0] / (4 * threads));
  int64_t images = pieces > 1 ? 1 : std::max<int64_t>(1, most);
  // Output rows that are made together, and the inner rows that the next ones see as well.
  int64_t inner_row = width * kGroup, overlap = std::max<int64_t>(0, side - strides);
  int64_t together = std::clamp<int64_t>((kCopied / inner_row - side) / strides + 1, 1, rows);
  int64_t held_size = ((together - 1) * strides + side) * inner_row;
  bool is_narrow = seen.columns <= kPixels / 2;
  const Tap whole{0, 0};
  ForEachPiece(pool, threads, (in[0] + images - 1) / images * pieces, [&](int64_t piece) {
    int64_t begin = piece / pieces * images, end = std::min(in[0], begin + images);
    int64_t first = piece % pieces * rows, last = std::min(first + rows, made.rows);
    float* held = Scratch(held_size + (is_narrow ? seen.rows * seen.columns * kGroup : 0));
    for (int64_t group = 0; group < groups; ++group) {
      int64_t lanes = LanesOf(channels, group), start = group * kGroup, row_size = width * lanes;
      std::vector<Tap> places;
      for (int64_t t = 0; t < taps; ++t)
        places.push_back({t / across * row_size + t % across * lanes, t});
      Run run{nullptr, inputs, &whole, 1, inputs, &packed[start * inputs], lanes, nullptr, lanes,
              std::min(lanes, channels - start), between.From(start, 0)};
      Expansion inner_rows{seen, across / 2, width, lanes, run, is_narrow ? held + held_size : nullptr};
      for (int64_t image = begin; image < end; ++image)
        for (int64_t row = first; row < last; row += together) {
          int64_t count = std::min(together, last - row), needed = (count - 1) * strides + side;
          int64_t kept = row == first ? 0 : overlap, top = row * strides - side / 2;
          if (kept) {
            const float* from = held + together * strides * row_size;
            std::memmove(held, from, kept * row_size * sizeof(float));
          }
          inner_rows.Rows(x.typed_data() + image * seen.size(), top + kept, needed - kept,
                          held + kept * row_size);
          for (int64_t r = 0; r < count; ++r)
            for (int64_t c = start; c < std::min(channels, start + lanes); c += kLanes) {
              int64_t place = image * made.size() + (row + r) * made.columns * channels + c;
              InTiles(kDepthwiseTiles,
                      {held + r * strides * row_size + c - start, strides * lanes, places.data(),
                       taps, 1, &weights[c * taps], kLanes, y->typed_data() + place, channels,
                       std::min(kLanes, channels - c), epilogue.From(c, place)},
                      made.columns);
            }
        }
    }
    if (epilogue.is_streamed) EndStream();
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_expanded_depthwise, ExpandedDepthwise,
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
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("inner_epsilon")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
