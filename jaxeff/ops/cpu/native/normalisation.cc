// Sums over images [batch, rows, columns, channels] by channel, in float32: those of batch
// statistics and of the derivative of a normalisation with the ReLU after it.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kTogether = 4;  // pixels: enough sums to hide the latency of an addition
constexpr int64_t kBlock = 512;   // pixels whose sums are kept in single precision
constexpr int64_t kParts = 64;    // of the pixels, whatever the number of threads
constexpr int64_t kSmallSum = 1 << 15;  // values below which another thread does not pay

// Adds a and a * (b - mean) of pixels [pixels, channels], for `width` channels from the first on.
// With `mask`, a is first set to zero where mask is not positive, and written to `masked`.
void AddSums(const float* a, const float* b, const float* mean, const float* mask, float* masked,
             int64_t pixels, int64_t channels, int64_t width, double* sums, double* products) {
  Vector sum[kTogether] = {}, product[kTogether] = {}, center{};
  std::memcpy(&center, mean, 4 * width);
  auto add = [&](int64_t place, int64_t lane) {
    Vector value{}, other{}, sign{};
    if (width == kLanes) {
      value = Load(a + place), other = Load(b + place);
      if (mask) {
        value = Load(mask + place) > 0 ? value : Vector{};
        Store(masked + place, value);
      }
    } else {
      std::memcpy(&value, a + place, 4 * width);
      std::memcpy(&other, b + place, 4 * width);
      if (mask) {
        std::memcpy(&sign, mask + place, 4 * width);
        value = sign > 0 ? value : Vector{};
        std::memcpy(masked + place, &value, 4 * width);
      }
    }
    sum[lane] += value;
    product[lane] += value * (other - center);
  };
  int64_t p = 0;
  for (; p + kTogether <= pixels; p += kTogether)
#pragma GCC unroll 4
    for (int64_t i = 0; i < kTogether; ++i) add((p + i) * channels, i);
  for (; p < pixels; ++p) add(p * channels, 0);
  for (int64_t c = 0; c < width; ++c)
    for (int64_t i = 0; i < kTogether; ++i) {
      sums[c] += sum[i][c];
      products[c] += product[i][c];
    }
}

void Sums(ffi::ThreadPool& pool, const Array& a, const Array& b, const Array& mean,
          const float* mask, float* masked, float* result, int64_t threads) {
  int64_t channels = mean.element_count();
  int64_t pixels = a.element_count() / channels, blocks = (pixels + kBlock - 1) / kBlock;
  int64_t parts = std::min(blocks, kParts);
  std::vector<double> totals(parts * 2 * channels);
  ForEachPiece(pool, threads, parts, [&](int64_t part) {
    double* total = &totals[part * 2 * channels];
    for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block)
      for (int64_t c = 0; c < channels; c += kLanes) {
        int64_t place = block * kBlock * channels + c;
        AddSums(a.typed_data() + place, b.typed_data() + place, mean.typed_data() + c,
                mask ? mask + place : nullptr, masked ? masked + place : nullptr,
                std::min(kBlock, pixels - block * kBlock), channels,
                std::min(kLanes, channels - c), total + c, total + channels + c);
      }
  });
  for (int64_t i = 0; i < 2 * channels; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += totals[part * 2 * channels + i];
    result[i] = static_cast<float>(sum);
  }
}

ffi::Error ChannelSums(ffi::ThreadPool pool, Array a, Array b, Array mean, Result sums,
                       int64_t threads) {
  Sums(pool, a, b, mean, nullptr, nullptr, sums->typed_data(), threads);
  return ffi::Error::Success();
}

ffi::Error MaskedChannelSums(ffi::ThreadPool pool, Array a, Array b, Array mean, Array mask,
                             Result masked, Result sums, int64_t threads) {
  Sums(pool, a, b, mean, mask.typed_data(), masked->typed_data(), sums->typed_data(), threads);
  return ffi::Error::Success();
}

// Sums over the pixels of each image, of one vector of channels at a time.
ffi::Error PixelSums(ffi::ThreadPool pool, Array x, Result sums, int64_t threads) {
  auto in = x.dimensions();
  int64_t pixels = in[1] * in[2], channels = in[3], vectors = (channels + kLanes - 1) / kLanes;
  int64_t together = std::clamp<int64_t>(kSmallSum / (pixels * kLanes), 1, vectors);
  int64_t pieces = (vectors + together - 1) / together;
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, start = piece % pieces * together * kLanes;
    int64_t end = std::min(channels, start + together * kLanes);
    for (int64_t c = start; c < end; c += kLanes) {
      const float* from = x.typed_data() + image * pixels * channels + c;
      int64_t width = std::min(kLanes, channels - c);
      Vector total{};
      for (int64_t first = 0; first < pixels; first += kBlock) {  // sums of sums lose less
        Vector sum[kTogether] = {};
        int64_t last = std::min(pixels, first + kBlock), p = first;
        for (; p + kTogether <= last; p += kTogether)
#pragma GCC unroll 4
          for (int64_t i = 0; i < kTogether; ++i)
            sum[i] += LoadPart(from + (p + i) * channels, width);
        for (; p < last; ++p) sum[0] += LoadPart(from + p * channels, width);
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
      }
      StorePart(sums->typed_data() + image * channels + c, total, width);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_channel_sums, ChannelSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_masked_channel_sums, MaskedChannelSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_pixel_sums, PixelSums,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
