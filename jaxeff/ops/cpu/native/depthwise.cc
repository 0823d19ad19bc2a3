// Convolutions that take every channel of images [batch, rows, columns, channels] by itself.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

// Reads whole vectors: lanes beyond the channels are not written.
template <int P>
void DepthwiseTile(const Run& run) {
  Vector sums[P][1] = {};
  for (int64_t t = 0; t < run.num_taps; ++t) {
    const float* seen = run.input + run.taps[t].input;
    Vector weight = Load(run.kernel + run.taps[t].kernel);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p][0] += weight * Load(seen + p * run.input_pixel);
  }
  Finish<P, 1>(run, sums);
}

ffi::Error DepthwiseConvolve(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Array skip,
                             Result y, int64_t strides, bool relu, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], channels = k[3];
  int64_t lanes = RoundUp(channels, kLanes), width = (made.columns - 1) * strides + columns;
  std::vector<float> weights(rows * columns * lanes);
  std::vector<Tap> taps;
  for (int64_t t = 0; t < rows * columns; ++t) {
    std::copy_n(kernel.typed_data() + t * channels, channels, &weights[t * lanes]);
    taps.push_back({(t / columns * width + t % columns) * channels, t * lanes});
  }
  int64_t piece_rows = RowsOfPiece(in[0], made.rows, threads, strides * width * channels,
                                   made.columns * rows * columns * channels);
  int64_t pieces = (made.rows + piece_rows - 1) / piece_rows;
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, first = piece % pieces * piece_rows;
    int64_t count = std::min(piece_rows, made.rows - first);
    int64_t needed = (count - 1) * strides + rows;
    float* copied = Scratch(needed * width * channels + kLanes);
    CopyRows(x.typed_data() + image * seen.size(), seen, first * strides - rows / 2, needed,
             -(columns / 2), width, copied);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = 0; c < channels; c += kLanes) {
        int64_t place = image * made.size() + (first + r) * made.columns * channels + c;
        Run run{copied + r * strides * width * channels + c, strides * channels, taps.data(),
                static_cast<int64_t>(taps.size()), 1, &weights[c], y->typed_data() + place, channels,
                std::min(kLanes, channels - c), {}};
        run.epilogue.bias = bias.element_count() ? bias.typed_data() + c : nullptr;
        run.epilogue.skip = skip.element_count() ? skip.typed_data() + place : nullptr;
        run.epilogue.relu = relu;
        int64_t p = 0;
        for (; p + kPixels <= made.columns; p += kPixels, run.Advance(kPixels))
          DepthwiseTile<kPixels>(run);
        for (; p < made.columns; ++p, run.Advance(1)) DepthwiseTile<1>(run);
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
                                  .Attr<bool>("relu")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
