// Convolutions that take every channel of images [batch, rows, columns, channels] by itself, a few
// rows copied between zeros: those of one vector of channels at a time, or of all channels.

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

// Floats of an image above which rows of all channels are copied: one vector of each pixel would be
// read from memory, where whole lines of pixels follow each other, and not from a cache.
constexpr int64_t kCached = 1 << 18;

ffi::Error DepthwiseConvolve(ffi::ThreadPool pool, Array x, Array kernel, Array scale, Array offset,
                             Array mean, Array variance, Array skip, Result y, int64_t strides,
                             int64_t activation, float epsilon, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t side = k[0], across = k[1], channels = k[3], blocks = (channels + kLanes - 1) / kLanes;
  int64_t width = (made.columns - 1) * strides + across;
  bool is_whole = seen.size() > kCached;
  int64_t parts = is_whole ? 1 : blocks, pixel = is_whole ? channels : kLanes;
  std::vector<Tap> taps;
  for (int64_t t = 0; t < side * across; ++t)
    taps.push_back({(t / across * width + t % across) * pixel, t});
  int64_t rows = RowsOfPiece(in[0] * parts, made.rows, threads, strides * width * pixel,
                             made.columns * side * across * pixel);
  int64_t pieces = (made.rows + rows - 1) / rows;
  Affine affine(scale, offset, mean, variance, epsilon);
  Epilogue epilogue = EpilogueOf(affine, skip, activation);
  epilogue.is_streamed = IsStreamed(y->typed_data(), y->element_count(), made.channels);
  epilogue.factor = nullptr;  // it is taken into the kernel
  ForEachPiece(pool, threads, in[0] * parts * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces / parts, part = piece / pieces % parts * kLanes;
    int64_t first = piece % pieces * rows, count = std::min(rows, made.rows - first);
    int64_t needed = (count - 1) * strides + side, size = side * across * kLanes;
    int64_t end = is_whole ? channels : std::min(channels, part + kLanes);
    float* weights = Scratch(blocks / parts * size + needed * width * pixel + kLanes);
    float* copied = weights + blocks / parts * size;
    for (int64_t c = part; c < end; c += kLanes)
      CopyScaledKernel(kernel.typed_data(), side * across, channels, c, affine.Factor(),
                       weights + (c - part) / kLanes * size);
    const float* from = x.typed_data() + image * seen.size() + part;
    int64_t top = first * strides - side / 2, left = -(across / 2);
    if (is_whole)
      CopyRows(from, seen, top, needed, left, width, copied);
    else
      CopyPlaneRows(from, seen, end - part, top, needed, left, width, copied);
    for (int64_t r = 0; r < count; ++r)
      for (int64_t c = part; c < end; c += kLanes) {
        int64_t place = image * made.size() + (first + r) * made.columns * channels + c;
        Run run{copied + r * strides * width * pixel + c - part, strides * pixel, taps.data(),
                static_cast<int64_t>(taps.size()), 1, weights + (c - part) / kLanes * size, kLanes,
                y->typed_data() + place, channels, std::min(kLanes, channels - c),
                epilogue.From(c, place)};
        InTiles(kDepthwiseTiles, run, made.columns);
      }
    if (epilogue.is_streamed) EndStream();
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
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
