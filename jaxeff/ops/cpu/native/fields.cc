// Several depthwise convolutions of the same images [batch, rows, columns, channels] in one pass, and
// the gradients. Kernels are [k, k, 1, fields * channels], results [..., fields * channels]: one
// field after the other. One image and one vector of channels at a time.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "planes.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kParts = 64;  // of the batch, whatever the number of threads

struct Sizes {
  int64_t batch, rows, columns, channels, side, across, fields;
  Sizes(ffi::Span<const int64_t> x, ffi::Span<const int64_t> kernel)
      : batch(x[0]), rows(x[1]), columns(x[2]), channels(x[3]), side(kernel[0]), across(kernel[1]),
        fields(kernel[3] / x[3]) {}
  int64_t pixels() const { return rows * columns; }
  int64_t blocks() const { return (channels + kLanes - 1) / kLanes; }
  int64_t taps() const { return side * across; }
  int64_t padded() const { return PlaneSize(rows + side - 1, columns + across - 1); }
  int64_t padded_row() const { return (columns + across - 1) * kLanes; }

  void Copy(const float* images, int64_t n, int64_t first, int64_t all, int64_t width,
            float* to) const {
    CopyPlane(images + n * pixels() * all + first, rows, columns, all, width, side / 2, across / 2,
              to);
  }
};

template <int N>
void Convolve(ffi::ThreadPool& pool, const Sizes& size, const float* x, const float* kernel,
              float* y, int64_t threads) {
  int64_t all = N * size.channels;
  ForEachPiece(pool, threads, size.batch * size.blocks(), [&](int64_t piece) {
    int64_t n = piece / size.blocks(), first = piece % size.blocks() * kLanes;
    int64_t width = std::min(kLanes, size.channels - first);
    float* padded = Scratch(size.padded() + size.taps() * N * kLanes);
    float* weights = padded + size.padded();
    size.Copy(x, n, first, size.channels, width, padded);
    CopyKernels(kernel, size.taps(), N, size.channels, first, width, weights);
    float* to = y + n * size.pixels() * all + first;
    Fields<N>(padded, size.rows, size.columns, size.side, size.across, weights,
              [&](int64_t pixel, int f, const Vector& value) JAXEFF_INLINE {
                StorePart(to + pixel * all + f * size.channels, value, width);
              });
  });
}

// Adds what all fields' planes give to P pixels of the inputs; the kernels are turned.
template <int N, int P>
void InputTile(const Sizes& size, const float* seen, const float* weights, float* to,
               int64_t width) {
  Vector sums[P] = {};
  for (int64_t r = 0; r < size.side; ++r)
    for (int64_t c = 0; c < size.across; ++c)
      for (int f = 0; f < N; ++f, weights += kLanes) {
        const float* from = seen + f * size.padded() + r * size.padded_row() + c * kLanes;
        Vector weight = Load(weights);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) sums[p] += weight * Load(from + p * kLanes);
      }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) StorePart(to + p * size.channels, sums[p], width);
}

template <int N>
void InputGradient(ffi::ThreadPool& pool, const Sizes& size, const float* g, const float* kernel,
                   float* dx, int64_t threads) {
  int64_t all = N * size.channels;
  ForEachPiece(pool, threads, size.batch * size.blocks(), [&](int64_t piece) {
    int64_t n = piece / size.blocks(), first = piece % size.blocks() * kLanes;
    int64_t width = std::min(kLanes, size.channels - first);
    float* padded = Scratch(N * size.padded() + size.taps() * N * kLanes);
    float* weights = padded + N * size.padded();
    for (int f = 0; f < N; ++f)
      size.Copy(g, n, f * size.channels + first, all, width, padded + f * size.padded());
    for (int64_t t = 0; t < size.taps(); ++t)
      CopyKernels(kernel + (size.taps() - 1 - t) * all, 1, N, size.channels, first, width,
                  weights + t * N * kLanes);
    for (int64_t r = 0; r < size.rows; ++r) {
      const float* seen = padded + r * size.padded_row();
      float* to = dx + (n * size.pixels() + r * size.columns) * size.channels + first;
      int64_t c = 0;
      for (; c + kPixels <= size.columns; c += kPixels)
        InputTile<N, kPixels>(size, seen + c * kLanes, weights, to + c * size.channels, width);
      for (; c < size.columns; ++c)
        InputTile<N, 1>(size, seen + c * kLanes, weights, to + c * size.channels, width);
    }
  });
}

// Adds products of a row's inputs, as one tap sees them, with the slopes of all fields.
template <int N>
void KernelRow(const float* seen, const float* slopes, int64_t slopes_plane, int64_t columns,
               float* totals) {
  constexpr int kTogether = 2;  // enough sums to hide the latency of an addition
  Vector sums[kTogether][N] = {};
  auto add = [&](int64_t c, int lane) {
    Vector value = Load(seen + c * kLanes);
#pragma GCC unroll 4
    for (int f = 0; f < N; ++f)
      sums[lane][f] += value * Load(slopes + f * slopes_plane + c * kLanes);
  };
  int64_t c = 0;
  for (; c + kTogether <= columns; c += kTogether) add(c, 0), add(c + 1, 1);
  for (; c < columns; ++c) add(c, 0);
  for (int f = 0; f < N; ++f)
    Store(totals + f * kLanes, Load(totals + f * kLanes) + sums[0][f] + sums[1][f]);
}

template <int N>
void KernelGradient(ffi::ThreadPool& pool, const Sizes& size, const float* x, const float* g,
                    float* dkernel, int64_t threads) {
  int64_t parts = std::min(size.batch, kParts), all = N * size.channels;
  std::vector<double> totals(parts * size.taps() * all);
  ForEachPiece(pool, threads, parts * size.blocks(), [&](int64_t piece) {
    int64_t part = piece / size.blocks(), first = piece % size.blocks() * kLanes;
    int64_t width = std::min(kLanes, size.channels - first);
    int64_t plane = PlanesApart(size.rows, size.columns), row = size.columns * kLanes;
    int64_t sums_size = size.taps() * N * kLanes;
    float* padded = Scratch(size.padded() + N * plane + sums_size);
    float *slopes = padded + size.padded(), *sums = slopes + N * plane;
    for (int64_t n = size.batch * part / parts; n < size.batch * (part + 1) / parts; ++n) {
      size.Copy(x, n, first, size.channels, width, padded);
      for (int f = 0; f < N; ++f)
        CopyPlane(g + n * size.pixels() * all + f * size.channels + first, size.rows, size.columns,
                  all, width, 0, 0, slopes + f * plane);
      std::fill(sums, sums + sums_size, 0.0f);
      for (int64_t r = 0; r < size.rows; ++r)
        for (int64_t t = 0; t < size.taps(); ++t)
          KernelRow<N>(padded + (r + t / size.across) * size.padded_row() + t % size.across * kLanes,
                       slopes + r * row, plane, size.columns, sums + t * N * kLanes);
      double* total = &totals[part * size.taps() * all + first];
      for (int64_t i = 0; i < size.taps() * N; ++i)
        for (int64_t c = 0; c < width; ++c) total[i * size.channels + c] += sums[i * kLanes + c];
    }
  });
  for (int64_t i = 0; i < size.taps() * all; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += totals[part * size.taps() * all + i];
    dkernel[i] = static_cast<float>(sum);
  }
}

// Calls the function of as many fields as there are.
#define JAXEFF_BY_FIELDS(function, size, ...)                             \
  switch (size.fields) {                                                  \
    case 1: function<1>(pool, size, __VA_ARGS__, threads); break;         \
    case 2: function<2>(pool, size, __VA_ARGS__, threads); break;         \
    case 4: function<4>(pool, size, __VA_ARGS__, threads); break;         \
    default: return ffi::Error::InvalidArgument("1, 2 or 4 fields only"); \
  }                                                                       \
  return ffi::Error::Success()

ffi::Error FieldsForward(ffi::ThreadPool pool, Array x, Array kernel, Result y, int64_t threads) {
  Sizes size(x.dimensions(), kernel.dimensions());
  JAXEFF_BY_FIELDS(Convolve, size, x.typed_data(), kernel.typed_data(), y->typed_data());
}

ffi::Error FieldsInputGradient(ffi::ThreadPool pool, Array g, Array kernel, Result dx,
                               int64_t threads) {
  Sizes size(dx->dimensions(), kernel.dimensions());
  JAXEFF_BY_FIELDS(InputGradient, size, g.typed_data(), kernel.typed_data(), dx->typed_data());
}

ffi::Error FieldsKernelGradient(ffi::ThreadPool pool, Array x, Array g, Result dkernel,
                                int64_t threads) {
  Sizes size(x.dimensions(), dkernel->dimensions());
  JAXEFF_BY_FIELDS(KernelGradient, size, x.typed_data(), g.typed_data(), dkernel->typed_data());
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_fields, FieldsForward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_fields_input_gradient, FieldsInputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_fields_kernel_gradient, FieldsKernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
