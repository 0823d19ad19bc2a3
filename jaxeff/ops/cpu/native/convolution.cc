// Convolutions of images [batch, rows, columns, channels] and their gradients, in float32.
//
// A tile is a few neighbouring pixels of an output row times one or two vectors of output channels;
// its sums stay in registers while all taps and input channels are added. The inputs are first
// copied, a few rows at a time, between zeros, so that no tap needs a check.

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kPixels = 8;           // of a tile: enough sums to hide the latency of an addition
constexpr int64_t kCopied = 48 << 10;    // most floats of copied rows: they stay in a core's cache
constexpr int64_t kSmallPiece = 1 << 19;  // multiply-adds below which another thread does not pay

struct Tap {
  int64_t input;   // from a pixel's place in the copied rows to what the tap sees
  int64_t kernel;  // to the tap's weights
};

// What is done with sums before they are written.
struct Epilogue {
  const float* bias = nullptr;  // [channels]
  const float* skip = nullptr;  // like the output
  bool relu = false;
};

// A run of pixels: from where the inputs are read, and to where sums go.
struct Run {
  const float* input;
  int64_t input_pixel;  // floats from one pixel to the next
  const Tap* taps;
  int64_t num_taps, input_channels;
  const float* kernel;  // [taps, input channels, vectors of output channels]
  float* output;
  int64_t output_pixel;
  int64_t channels;  // to write: the last vector may have fewer than its lanes
  Epilogue epilogue;  // its pointers at the run's first pixel and channel
};

template <int P, int V>
void Tile(const Run& run) {
  Vector sums[P][V] = {};
  for (int64_t t = 0; t < run.num_taps; ++t) {
    const float* seen = run.input + run.taps[t].input;
    const float* weights = run.kernel + run.taps[t].kernel;
    const int64_t pixel = run.input_pixel;
    for (int64_t c = 0; c < run.input_channels; ++c, weights += V * kLanes) {
      Vector w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = Load(weights + v * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sums[p][v] += w[v] * seen[p * pixel + c];
    }
  }
  const Epilogue& after = run.epilogue;
  if (run.channels < V * kLanes) {
    for (int p = 0; p < P; ++p) {
      float values[V * kLanes];
      for (int v = 0; v < V; ++v) Store(values + v * kLanes, sums[p][v]);
      for (int64_t c = 0; c < run.channels; ++c) {
        float value = values[c];
        if (after.bias) value += after.bias[c];
        if (after.skip) value += after.skip[p * run.output_pixel + c];
        run.output[p * run.output_pixel + c] = after.relu && value < 0 ? 0 : value;
      }
    }
    return;
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vector value = sums[p][v];
      int64_t place = p * run.output_pixel + v * kLanes;
      if (after.bias) value += Load(after.bias + v * kLanes);
      if (after.skip) value += Load(after.skip + place);
      if (after.relu) value = value < 0 ? Vector{} : value;
      Store(run.output + place, value);
    }
}

// Pixels of a run in tiles of nearly one size.
template <int V>
void Tiles(Run run, int64_t pixels) {
  static constexpr void (*kTiles[])(const Run&) = {
      Tile<1, V>, Tile<2, V>, Tile<3, V>, Tile<4, V>, Tile<5, V>, Tile<6, V>, Tile<7, V>, Tile<8, V>};
  int64_t tiles = (pixels + kPixels - 1) / kPixels;
  for (int64_t i = 0, start = 0; i < tiles; ++i) {
    int64_t end = pixels * (i + 1) / tiles;
    kTiles[end - start - 1](run);
    run.input += (end - start) * run.input_pixel;
    run.output += (end - start) * run.output_pixel;
    if (run.epilogue.skip) run.epilogue.skip += (end - start) * run.output_pixel;
    start = end;
  }
}

// Output channels are computed in groups of so many vectors.
int64_t VectorsOf(int64_t channels) { return channels > kLanes ? 2 : 1; }

// A kernel as tiles read it: [groups, taps, input channels, lanes of the group], filled with zeros.
struct Packed {
  int64_t vectors, lanes, groups, group_size;
  std::vector<float> values;

  template <typename At>  // at(tap, input channel, output channel)
  Packed(int64_t taps, int64_t inputs, int64_t outputs, const At& at)
      : vectors(VectorsOf(outputs)),
        lanes(vectors * kLanes),
        groups((outputs + lanes - 1) / lanes),
        group_size(taps * inputs * lanes),
        values(groups * group_size) {
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t i = 0; i < inputs; ++i) {
          float* to = &values[group * group_size + (t * inputs + i) * lanes];
          for (int64_t o = 0; o < std::min(lanes, outputs - group * lanes); ++o)
            to[o] = at(t, i, group * lanes + o);
        }
  }

  // Computes all output channels of rows of runs, given the first of them without its kernel. Groups
  // are the outer loop: the weights of one stay in cache.
  void Convolve(const Run& first_row, int64_t outputs, int64_t rows, int64_t input_row,
                int64_t output_row, int64_t pixels) const {
    for (int64_t group = 0; group < groups; ++group) {
      Run run = first_row;
      int64_t first = group * lanes;
      run.kernel = &values[group * group_size];
      run.channels = std::min(lanes, outputs - first);
      run.output += first;
      if (run.epilogue.bias) run.epilogue.bias += first;
      if (run.epilogue.skip) run.epilogue.skip += first;
      for (int64_t r = 0; r < rows; ++r) {
        vectors == 1 ? Tiles<1>(run, pixels) : Tiles<2>(run, pixels);
        run.input += input_row;
        run.output += output_row;
        if (run.epilogue.skip) run.epilogue.skip += output_row;
      }
    }
  }
};

struct Image {
  int64_t rows, columns, channels;
  int64_t size() const { return rows * columns * channels; }
};

// Copies rows [first, first + count) and columns [left, left + width) of an image, zeros outside.
void CopyRows(const float* image, const Image& shape, int64_t first, int64_t count, int64_t left,
              int64_t width, float* to) {
  int64_t start = std::clamp<int64_t>(-left, 0, width);
  int64_t end = std::clamp<int64_t>(shape.columns - left, start, width);
  int64_t c = shape.channels;
  for (int64_t r = first; r < first + count; ++r, to += width * c) {
    if (r < 0 || r >= shape.rows) {
      std::fill(to, to + width * c, 0.0f);
      continue;
    }
    std::fill(to, to + start * c, 0.0f);
    const float* from = image + (r * shape.columns + left + start) * c;
    std::copy(from, from + (end - start) * c, to + start * c);
    std::fill(to + end * c, to + width * c, 0.0f);
  }
}

// How output rows are divided: so few that what they see stays in cache and that threads have work.
int64_t RowsOfPiece(int64_t batch, int64_t rows, int64_t threads, int64_t floats_per_row,
                    int64_t macs_per_row) {
  int64_t most = std::max<int64_t>(1, kCopied / std::max<int64_t>(1, floats_per_row));
  int64_t enough = std::max<int64_t>(1, kSmallPiece / std::max<int64_t>(1, macs_per_row));
  int64_t shared = std::max(enough, (batch * rows + 4 * threads - 1) / (4 * threads));
  return std::min({most, shared, rows});
}

float* Scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

ffi::Error Convolve(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Array skip, Result y,
                    int64_t strides, bool relu, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions(), out = y->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], inputs = k[2], outputs = k[3];
  const float* weights = kernel.typed_data();
  Packed packed(rows * columns, inputs, outputs, [=](int64_t t, int64_t i, int64_t o) {
    return weights[(t * inputs + i) * outputs + o];
  });
  int64_t width = (made.columns - 1) * strides + columns;
  std::vector<Tap> taps;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      taps.push_back({(r * width + c) * inputs,
                      static_cast<int64_t>(taps.size()) * inputs * packed.lanes});
  int64_t per_row = made.columns * rows * columns * inputs * outputs;
  int64_t piece_rows = RowsOfPiece(in[0], made.rows, threads, strides * width * inputs, per_row);
  int64_t pieces = (made.rows + piece_rows - 1) / piece_rows;
  bool in_place = rows == 1 && columns == 1;  // nothing lies beside the image
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, first = piece % pieces * piece_rows;
    int64_t count = std::min(piece_rows, made.rows - first);
    const float* whole = x.typed_data() + image * seen.size();
    int64_t needed = (count - 1) * strides + rows, input_row = width * inputs;
    const float* copied;
    if (in_place) {
      copied = whole + first * strides * seen.columns * inputs;
      input_row = seen.columns * inputs;
    } else {
      float* memory = Scratch(needed * input_row);
      CopyRows(whole, seen, first * strides - rows / 2, needed, -(columns / 2), width, memory);
      copied = memory;
    }
    int64_t output_row = made.columns * outputs;
    int64_t place = image * made.size() + first * output_row;
    Run run{copied, strides * inputs, taps.data(), static_cast<int64_t>(taps.size()), inputs, nullptr,
            y->typed_data() + place, outputs, 0, {}};
    run.epilogue.bias = bias.element_count() ? bias.typed_data() : nullptr;
    run.epilogue.skip = skip.element_count() ? skip.typed_data() + place : nullptr;
    run.epilogue.relu = relu;
    if (in_place && strides == 1)  // the rows are one
      packed.Convolve(run, outputs, 1, 0, 0, count * made.columns);
    else
      packed.Convolve(run, outputs, count, strides * input_row, output_row, made.columns);
  });
  return ffi::Error::Success();
}

// The transpose with regard to the inputs. Pixels of one remainder by the strides see the same taps,
// and are a convolution of the cotangent by themselves.
ffi::Error InputGradient(ffi::ThreadPool pool, Array g, Array kernel, Result dx, int64_t strides,
                         int64_t threads) {
  auto in = g.dimensions(), k = kernel.dimensions(), out = dx->dimensions();
  Image seen{in[1], in[2], in[3]}, made{out[1], out[2], out[3]};
  int64_t rows = k[0], columns = k[1], inputs = k[2], outputs = k[3];
  const float* weights = kernel.typed_data();
  Packed packed(rows * columns, outputs, inputs, [=](int64_t t, int64_t o, int64_t i) {
    return weights[(t * inputs + i) * outputs + o];
  });
  // Tap t sees input i from output (i + side / 2 - t) / strides, where that is whole.
  auto phase = [=](int64_t tap, int64_t side) {
    return ((tap - side / 2) % strides + strides) % strides;
  };
  auto ahead = [=](int64_t tap, int64_t side) {
    return (phase(tap, side) + side / 2 - tap) / strides;
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
          {(down * width + along) * outputs, (r * columns + c) * outputs * packed.lanes});
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
                nullptr, to, strides * inputs, 0, {}};
        packed.Convolve(run, inputs, runs, width * outputs, strides * made.columns * inputs, pixels);
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
                          int64_t threads) {
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
        CopyRows(x.typed_data() + n * seen.size(), seen, first * strides - rows / 2,
                 (count - 1) * strides + rows, -(columns / 2), width, copied);
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
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<bool>("relu")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv_input_gradient, InputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_conv_kernel_gradient, KernelGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("strides")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
