// Convolutions that take every channel of images [batch, rows, columns, channels] by itself: one
// image and one vector of channels at a time, a few rows copied between zeros.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "parallel.h"
#include "planes.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

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

constexpr void (*kTiles[])(const Run&) = {
    DepthwiseTile<1>, DepthwiseTile<2>, DepthwiseTile<3>, DepthwiseTile<4>,
    DepthwiseTile<5>, DepthwiseTile<6>, DepthwiseTile<7>, DepthwiseTile<8>};

ffi::Error DepthwiseConvolve(ffi::ThreadPool pool, Array x, Array kernel, Array affine, Array skip,
                             Result y, int64_t strides, int64_t activation,
                             int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t side = k[0], across = k[1], channels = k[3], blocks = (channels + kLanes - 1) / kLanes;
  int64_t width = (made.columns - 1) * strides + across;
  std::vector<Tap> taps;
  for (int64_t t = 0; t < side * across; ++t)
    taps.push_back({(t / across * width + t % across) * kLanes, t});
  int64_t rows = RowsOfPiece(in[0] * blocks, made.rows, threads, strides * width * kLanes,
                             made.columns * side * across * kLanes);
  int64_t pieces = (made.rows + rows - 1) / rows;
  Epilogue epilogue = EpilogueOf(affine, skip, activation);
  ForEachPiece(pool, threads, in[0] * blocks * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces / blocks, channel = piece / pieces % blocks * kLanes;
    int64_t first = piece % pieces * rows, count = std::min(rows, made.rows - first);
    int64_t needed = (count - 1) * strides + side, lanes = std::min(kLanes, channels - channel);
    float* weights = Scratch((side * across + needed * width) * kLanes);
    float* copied = weights + side * across * kLanes;
    CopyKernels(kernel.typed_data(), side * across, 1, channels, channel, lanes, weights);
    CopyPlaneRows(x.typed_data() + image * seen.size() + channel, seen, lanes,
                  first * strides - side / 2, needed, -(across / 2), width, copied);
    int64_t place = image * made.size() + first * made.columns * channels + channel;
    Run run{copied, strides * kLanes, taps.data(), static_cast<int64_t>(taps.size()), 1, weights,
            kLanes, y->typed_data() + place, channels, lanes, epilogue.From(channel, place)};
    for (int64_t r = 0; r < count; ++r) {
      InTiles(kTiles, run, made.columns);
      run.input += strides * width * kLanes;
      run.output += made.columns * channels;
      run.epilogue = run.epilogue.From(0, made.columns * channels);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_depthwise_conv, DepthwiseConvolve,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("activation")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
