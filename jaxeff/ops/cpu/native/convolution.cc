// Convolutions of images [batch, rows, columns, channels] and their gradients, in float32.
//
// A tile is a few neighbouring pixels of an output row times one or two vectors of output channels;
// its sums stay in registers while all taps and input channels are added. The inputs are first
// copied, a few rows at a time, between zeros, so that no tap needs a check. All three functions
// take the zeros before the first row and column, or a negative number for half of the kernel.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "arrays.h"
#include "dense.h"
#include "parallel.h"
#include "tiles.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

constexpr int64_t kWritten = 1 << 15;  // floats of output rows that stay in a core's cache

int64_t ZerosBefore(int64_t padding, int64_t side) { return padding < 0 ? side / 2 : padding; }

// Computes a group of output channels of rows of runs, given the first row with all channels, but
// with the weights of the group.
void ConvolveGroup(Run run, int64_t group, int64_t rows, int64_t input_row, int64_t output_row,
                   int64_t pixels) {
  int64_t lanes = LanesOf(run.channels, group), first = group * kGroup;
  run.channels = std::min(lanes, run.channels - first);
  run.output += first;
  run.epilogue = run.epilogue.From(first, first);
  for (int64_t r = 0; r < rows; ++r) {
    InTiles(lanes == kGroup ? kDenseTiles<2> : kDenseTiles<1>, run, pixels);
    run.input += input_row;
    run.output += output_row;
    run.epilogue = run.epilogue.From(0, output_row);
  }
}

void Multiply(const float* from, int64_t pixels, int64_t channels, const float* gate, float* to) {
  for (int64_t p = 0; p < pixels; ++p, from += channels, to += channels)
    for (int64_t c = 0; c < channels; ++c) to[c] = from[c] * gate[c];
}

ffi::Error Convolve(ffi::ThreadPool pool, Array x, Array kernel, Array scale, Array offset, Array mean,
                    Array variance, Array skip, Array gate, Result y, int64_t strides,
                    int64_t padding, int64_t activation, float epsilon, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], inputs = k[2], outputs = k[3];
  int64_t kernel_rows = rows * columns * inputs, groups = GroupsOf(outputs);
  int64_t group_size = kernel_rows * kGroup, width = (made.columns - 1) * strides + columns;
  // Columns of a kernel's row are next to each other, as are the pixels that they see.
  std::vector<Tap> taps;
  for (int64_t r = 0; r < rows; ++r) taps.push_back({r * width * inputs, r * columns * inputs});
  const float *gates = IfAny(gate), *images = x.typed_data();
  int64_t above = ZerosBefore(padding, rows), left = ZerosBefore(padding, columns);
  bool is_pixelwise = rows == 1 && columns == 1 && above == 0;
  // Where nothing lies beside the image it is read in place, but for the gate.
  int64_t copied_row = is_pixelwise ? (gates ? width * inputs / 2 : 1) : strides * width * inputs;
  Division division(in[0], made.rows, groups, threads, copied_row,
                    made.columns * kernel_rows * outputs);
  int64_t pieces = division.pieces, splits = division.splits;
  std::unique_ptr<float[]> gated;
  if (gates && splits > 1) {  // few pixels, which all groups read
    gated.reset(new float[x.element_count()]);
    ForEachPiece(pool, threads, in[0] * seen.rows, [&](int64_t row) {
      int64_t place = row * seen.columns * inputs;
      Multiply(images + place, seen.columns, inputs, gates + row / seen.rows * inputs, &gated[place]);
    });
    images = gated.get();
    gates = nullptr;
  }
  const float* weights = kernel.typed_data();
  auto pack = [&](int64_t group, float* to) {
    Pack(kernel_rows, outputs, group, [=](int64_t row, int64_t first, int64_t count, float* place) {
      Store(place, LoadPart(weights + row * outputs + first, count));
    }, to);
  };
  // Pieces with all groups share a copy of the kernel, unless a tile can read the kernel itself.
  bool is_whole = outputs % kLanes == 0, in_kernel = is_whole && (splits > 1 || groups == 1);
  std::unique_ptr<float[]> packed;
  if (!in_kernel && splits == 1) {
    packed.reset(new float[groups * group_size]);
    for (int64_t group = 0; group < groups; ++group) pack(group, &packed[group * group_size]);
  }
  Affine affine(scale, offset, mean, variance, epsilon);
  Epilogue epilogue = EpilogueOf(affine, skip, activation);
  epilogue.is_streamed = IsStreamed(y->typed_data(), y->element_count(), made.channels);
  bool in_place = is_pixelwise && !gates, is_one_row = is_pixelwise && strides == 1;
  ForEachPiece(pool, threads, in[0] * pieces * splits, [&](int64_t piece) {
    int64_t split = piece % splits, image = piece / splits / pieces;
    int64_t first = piece / splits % pieces * division.rows;
    int64_t count = std::min(division.rows, made.rows - first);
    const float* whole = images + image * seen.size();
    int64_t needed = (count - 1) * strides + rows, input_row = width * inputs;
    int64_t copied_size = in_place ? 0 : RoundUp(needed * input_row, kLanes);
    float* memory = Scratch(copied_size + (in_kernel || splits == 1 ? 0 : group_size));
    const float* copied = memory;
    if (in_place) {
      copied = whole + first * strides * seen.columns * inputs;
      input_row = seen.columns * inputs;
    } else {
      CopyRows(whole, seen, first * strides - above, needed, -left, width, memory);
      if (gates) Multiply(memory, needed * width, inputs, gates + image * inputs, memory);
    }
    int64_t output_row = made.columns * outputs, place = image * made.size() + first * output_row;
    Run run{copied, strides * inputs, taps.data(), rows, columns * inputs,
            weights, outputs, y->typed_data() + place, outputs, outputs, epilogue.From(0, place)};
    // All groups of a few rows after each other: what they write stays in cache meanwhile.
    int64_t together = splits > 1 ? count : std::clamp<int64_t>(kWritten / output_row, 1, count);
    for (int64_t row = 0; row < count; row += together) {
      int64_t height = std::min(together, count - row);
      for (int64_t group = groups * split / splits; group < groups * (split + 1) / splits; ++group) {
        if (in_kernel) {
          run.kernel = weights + group * kGroup;
        } else {
          run.kernel_row = LanesOf(outputs, group);
          run.kernel = splits == 1 ? packed.get() + group * group_size : memory + copied_size;
          if (splits > 1) pack(group, memory + copied_size);
        }
        ConvolveGroup(run, group, is_one_row ? 1 : height, strides * input_row, output_row,
                      is_one_row ? height * made.columns : made.columns);
      }
      run.input += height * strides * input_row;
      run.output += height * output_row;
      run.epilogue = run.epilogue.From(0, height * output_row);
    }
    if (epilogue.is_streamed) EndStream();
  });
  return ffi::Error::Success();
}

// The transpose with regard to the inputs. Pixels of one remainder by the strides see the same taps,
// and are a convolution of the cotangent by themselves.
ffi::Error InputGradient(ffi::ThreadPool pool, Array g, Array kernel, Result dx, int64_t strides,
                         int64_t padding, int64_t threads) {
  auto in = g.dimensions(), k = kernel.dimensions(), out = dx->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], inputs = k[2], outputs = k[3];
  int64_t kernel_rows = rows * columns * outputs, groups = GroupsOf(inputs);
  int64_t group_size = kernel_rows * kGroup;
  const float* weights = kernel.typed_data();
  std::unique_ptr<float[]> packed(new float[groups * group_size]);
  for (int64_t group = 0; group < groups; ++group)
    Pack(kernel_rows, inputs, group, [=](int64_t row, int64_t first, int64_t count, float* to) {
      const float* from = weights + (row / outputs * inputs + first) * outputs + row % outputs;
      for (int64_t i = 0; i < kLanes; ++i) to[i] = i < count ? from[i * outputs] : 0.0f;
    }, &packed[group * group_size]);
  // Tap t sees input i from output (i + zeros before - t) / strides, where that is whole.
  auto phase = [=](int64_t tap, int64_t side) {
    return ((tap - ZerosBefore(padding, side)) % strides + strides) % strides;
  };
  auto ahead = [=](int64_t tap, int64_t side) {
    return (phase(tap, side) + ZerosBefore(padding, side) - tap) / strides;
  };
  int64_t phase_columns = (made.columns + strides - 1) / strides;
  int64_t phase_rows = (made.rows + strides - 1) / strides;
  int64_t above = ahead(rows - 1, rows), left = ahead(columns - 1, columns);
  int64_t below = above, right = left;
  for (int64_t t = 0; t < rows; ++t) {
    above = std::min(above, ahead(t, rows));
    below = std::max(below, ahead(t, rows));
  }
  for (int64_t t = 0; t < columns; ++t) {
    left = std::min(left, ahead(t, columns));
    right = std::max(right, ahead(t, columns));
  }
  int64_t width = phase_columns + right - left;
  std::vector<std::vector<Tap>> taps(strides * strides);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      int64_t down = ahead(r, rows) - above, along = ahead(c, columns) - left;
      taps[phase(r, rows) * strides + phase(c, columns)].push_back(
          {(down * width + along) * outputs, (r * columns + c) * outputs});
    }
  int64_t per_row = phase_columns * rows * columns * inputs * outputs;
  int64_t piece_rows = RowsOfPiece(in[0], phase_rows, threads, width * outputs, per_row);
  int64_t pieces = (phase_rows + piece_rows - 1) / piece_rows;
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, first = piece % pieces * piece_rows;
    int64_t count = std::min(piece_rows, phase_rows - first);
    int64_t needed = count + below - above;
    float* copied = Scratch(needed * width * outputs);
    CopyRows(g.typed_data() + image * seen.size(), seen, first + above, needed, left, width, copied);
    for (int64_t y = 0; y < strides; ++y)
      for (int64_t x = 0; x < strides; ++x) {
        int64_t row = first * strides + y;
        int64_t runs = std::min(count, (made.rows - row + strides - 1) / strides);
        int64_t pixels = (made.columns - x + strides - 1) / strides;
        if (runs <= 0 || pixels <= 0) continue;
        const auto& seen_taps = taps[y * strides + x];
        float* to = dx->typed_data() + image * made.size() + (row * made.columns + x) * inputs;
        Run run{copied, outputs, seen_taps.data(), static_cast<int64_t>(seen_taps.size()), outputs,
                nullptr, 0, to, strides * inputs, inputs, {}};
        for (int64_t group = 0; group < groups; ++group) {
          run.kernel = &packed[group * group_size];
          run.kernel_row = LanesOf(inputs, group);
          ConvolveGroup(run, group, runs, width * outputs, strides * made.columns * inputs, pixels);
        }
      }
  });
  return ffi::Error::Success();
}

constexpr int64_t kInputs = 8;        // input channels of a tile of the kernel's gradient
constexpr int64_t kParts = 16;        // of the work, more than there are threads
constexpr int64_t kTotals = 1 << 20;  // most floats of the sums of all parts of the batch

// Adds what rows of cotangents and of inputs give to [C, V * kLanes] of the kernel's gradient.
template <int C, int V>
void GradientTile(const float* x, int64_t x_row, int64_t x_pixel, const float* g, int64_t g_row,
                  int64_t g_pixel, int64_t rows, int64_t columns, float* total, int64_t total_row) {
  Vector sums[C][V] = {};
  for (int64_t r = 0; r < rows; ++r) {
    const float *inputs = x + r * x_row, *slopes = g + r * g_row;
    for (int64_t p = 0; p < columns; ++p, inputs += x_pixel, slopes += g_pixel) {
      Vector slope[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) slope[v] = Load(slopes + v * kLanes);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[c][v] += slope[v] * inputs[c];
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* to = total + c * total_row + v * kLanes;
      Store(to, Load(to) + sums[c][v]);
    }
}

template <int V>
constexpr void (*kGradientTiles[])(const float*, int64_t, int64_t, const float*, int64_t, int64_t,
                                   int64_t, int64_t, float*, int64_t) = {
    GradientTile<1, V>, GradientTile<2, V>, GradientTile<3, V>, GradientTile<4, V>,
    GradientTile<5, V>, GradientTile<6, V>, GradientTile<7, V>, GradientTile<8, V>};

// The transpose with regard to the kernel. Batch and input channels are divided into parts whose
// numbers do not depend on the threads, and sums over parts of the batch are added in order.
ffi::Error KernelGradient(ffi::ThreadPool pool, Array x, Array g, Result dkernel, int64_t strides,
                          int64_t padding, int64_t threads) {
  auto in = x.dimensions(), k = dkernel->dimensions(), out = g.dimensions();
  Image seen{in[1], in[2], in[3]}, slopes{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], inputs = k[2], outputs = k[3];
  int64_t lanes = RoundUp(outputs, kLanes), vectors = lanes / kLanes;
  int64_t width = (slopes.columns - 1) * strides + columns;
  int64_t per_row = strides * width * inputs + slopes.columns * lanes;
  int64_t block = std::clamp<int64_t>(kCopied / per_row, 1, slopes.rows);
  int64_t size = rows * columns * inputs * lanes;
  int64_t parts = std::min({in[0], kParts, std::max<int64_t>(1, kTotals / size)});
  int64_t blocks = (inputs + kInputs - 1) / kInputs;
  int64_t splits = std::min(blocks, kParts / parts);
  std::vector<float> totals(parts * size);
  ForEachPiece(pool, threads, parts * splits, [&](int64_t piece) {
    int64_t part = piece / splits, split = piece % splits;
    int64_t start = blocks * split / splits * kInputs;
    int64_t end = std::min(inputs, blocks * (split + 1) / splits * kInputs);
    float* total = &totals[part * size];
    int64_t most = ((block - 1) * strides + rows) * width * inputs;
    float* copied = Scratch(most + block * slopes.columns * lanes);
    float* filled = copied + most;
    for (int64_t n = in[0] * part / parts; n < in[0] * (part + 1) / parts; ++n)
      for (int64_t first = 0; first < slopes.rows; first += block) {
        int64_t count = std::min(block, slopes.rows - first);
        CopyRows(x.typed_data() + n * seen.size(), seen, first * strides - ZerosBefore(padding, rows),
                 (count - 1) * strides + rows, -ZerosBefore(padding, columns), width, copied);
        const float* slope = g.typed_data() + n * slopes.size() + first * slopes.columns * outputs;
        if (lanes != outputs) {
          for (int64_t p = 0; p < count * slopes.columns; ++p) {
            std::copy(slope + p * outputs, slope + (p + 1) * outputs, filled + p * lanes);
            std::fill(filled + p * lanes + outputs, filled + (p + 1) * lanes, 0.0f);
          }
          slope = filled;
        }
        for (int64_t t = 0; t < rows * columns; ++t)
          for (int64_t i = start; i < end; i += kInputs)
            for (int64_t v = 0; v < vectors; v += 2) {
              int64_t c = std::min(kInputs, end - i);
              auto tile = v + 2 <= vectors ? kGradientTiles<2>[c - 1] : kGradientTiles<1>[c - 1];
              tile(copied + (t / columns * width + t % columns) * inputs + i, strides * width * inputs,
                   strides * inputs, slope + v * kLanes, slopes.columns * lanes, lanes, count,
                   slopes.columns, total + (t * inputs + i) * lanes + v * kLanes, lanes);
            }
      }
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) totals[i] += totals[part * size + i];
  for (int64_t i = 0; i < rows * columns * inputs; ++i)
    std::copy_n(&totals[i * lanes], outputs, dkernel->typed_data() + i * outputs);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv, Convolve,
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
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("padding")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv_input_gradient, InputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("padding")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("padding")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
