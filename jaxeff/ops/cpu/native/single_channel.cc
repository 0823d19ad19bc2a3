// Convolutions of images or volumes [batch, (depth,) rows, columns, channels] to a single channel.
//
// A vector of output channels would be empty but for one lane. Here lanes are input channels, whose
// sums are added at the end; their number is a multiple of the lanes.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "parallel.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

inline float SumOfLanes(const Vector& values) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(values));
#else
  float total = 0;
  for (int64_t i = 0; i < kLanes; ++i) total += values[i];
  return total;
#endif
}

template <int P>
void Tile(const Run& run) {
  Vector sums[P] = {};
  for (int64_t t = 0; t < run.num_taps; ++t) {
    const float* seen = run.input + run.taps[t].input;
    Vector weight = Load(run.kernel + run.taps[t].kernel);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] += weight * Load(seen + p * run.input_pixel);
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) run.output[p] = SumOfLanes(sums[p]);
}

constexpr void (*kTiles[])(const Run&) = {Tile<1>, Tile<2>, Tile<3>, Tile<4>,
                                          Tile<5>, Tile<6>, Tile<7>, Tile<8>};

// Images are volumes of one plane; the kernel is [depth, rows, columns, channels], of odd sides.
ffi::Error ConvolveToChannel(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions();
  int64_t depth = in[1];
  Image seen{in[2], in[3], in[4]};
  int64_t deep = k[0], side = k[1], across = k[2], channels = k[3];
  int64_t width = seen.columns + across - 1, row = width * channels;
  int64_t macs = depth * seen.columns * deep * side * across * channels;
  int64_t rows = RowsOfPiece(in[0], seen.rows, threads, deep * row, macs);
  int64_t pieces = (seen.rows + rows - 1) / rows;
  // The planes that a plane sees are copied in turn to as many places.
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    const float* volume = x.typed_data() + piece / pieces * depth * seen.size();
    float* output = y->typed_data() + piece / pieces * depth * seen.rows * seen.columns;
    int64_t first = piece % pieces * rows, count = std::min(rows, seen.rows - first);
    int64_t needed = count + side - 1, size = needed * row, next = 0;
    float* copied = Scratch(deep * size);
    for (int64_t plane = 0; plane < depth; ++plane) {
      int64_t top = std::max<int64_t>(0, plane - deep / 2);
      int64_t bottom = std::min(depth, plane + deep / 2 + 1);
      for (; next < bottom; ++next)
        CopyRows(volume + next * seen.size(), seen, first - side / 2, needed, -(across / 2), width,
                 copied + next % deep * size);
      std::vector<Tap> taps;
      for (int64_t p = top; p < bottom; ++p)
        for (int64_t t = 0; t < side * across; ++t)
          for (int64_t c = 0; c < channels; c += kLanes)
            taps.push_back({p % deep * size + t / across * row + t % across * channels + c,
                            ((p - plane + deep / 2) * side * across + t) * channels + c});
      for (int64_t r = 0; r < count; ++r) {
        float* to = output + (plane * seen.rows + first + r) * seen.columns;
        InTiles(kTiles, {copied + r * row, channels, taps.data(), static_cast<int64_t>(taps.size()),
                         1, kernel.typed_data(), 1, to, 1, 1, {}}, seen.columns);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv_to_channel, ConvolveToChannel,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
