// Convolutions with kernels [3, 3, inputs, outputs] and stride 1 by Winograd's F(2 x 2, 3 x 3): tiles
// of 2 x 2 outputs are 16 products in place of 36 (Lavin, Gray, "Fast Algorithms for Convolutional
// Neural Networks", 2016). Outputs and their transposes with regard to the inputs, in float32.

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

constexpr int64_t kPoints = 16;  // products per tile, input and output channel
constexpr int64_t kStrip = 16;   // tiles whose transforms are held together

// Transformed kernels, [groups, points, inputs, lanes of a group].
struct Transformed {
  int64_t inputs, outputs, vectors, lanes, groups;
  std::vector<float> values;

  // Of [3, 3, inputs, outputs]; if `turned`, of the turned kernel with inputs for outputs.
  Transformed(const float* kernel, int64_t from, int64_t to, bool turned)
      : inputs(turned ? to : from), outputs(turned ? from : to),
        vectors(outputs > kLanes ? 2 : 1), lanes(vectors * kLanes),
        groups((outputs + lanes - 1) / lanes), values(groups * kPoints * inputs * lanes) {
    for (int64_t i = 0; i < inputs; ++i)
      for (int64_t o = 0; o < outputs; ++o) {
        float g[3][3], half[4][3], made[4][4];
        for (int r = 0; r < 3; ++r)
          for (int c = 0; c < 3; ++c)
            g[r][c] = turned ? kernel[((8 - 3 * r - c) * from + o) * to + i]
                             : kernel[((3 * r + c) * from + i) * to + o];
        for (int c = 0; c < 3; ++c) Spread(g[0][c], g[1][c], g[2][c], half, c);
        for (int r = 0; r < 4; ++r) {
          float turned_row[4][1];
          Spread(half[r][0], half[r][1], half[r][2], turned_row, 0);
          for (int c = 0; c < 4; ++c) made[r][c] = turned_row[c][0];
        }
        float* place = &values[o / lanes * kPoints * inputs * lanes + i * lanes + o % lanes];
        for (int p = 0; p < kPoints; ++p) place[p * inputs * lanes] = made[p / 4][p % 4];
      }
  }

  template <int N>
  static void Spread(float a, float b, float c, float (&to)[4][N], int column) {
    to[0][column] = a;
    to[1][column] = 0.5f * (a + b + c);
    to[2][column] = 0.5f * (a - b + c);
    to[3][column] = c;
  }
};

// Transforms the 4 x 4 inputs of one tile and vector of channels; points are `apart` floats apart.
void TransformInputs(const float* seen, int64_t row, int64_t pixel, float* to, int64_t apart) {
  Vector half[4][4];
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const float* from = seen + c * pixel;
    Vector a = Load(from), b = Load(from + row), d = Load(from + 2 * row), e = Load(from + 3 * row);
    half[0][c] = a - d, half[1][c] = b + d, half[2][c] = d - b, half[3][c] = b - e;
  }
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    float* place = to + 4 * r * apart;
    Store(place, half[r][0] - half[r][2]);
    Store(place + apart, half[r][1] + half[r][2]);
    Store(place + 2 * apart, half[r][2] - half[r][1]);
    Store(place + 3 * apart, half[r][1] - half[r][3]);
  }
}

// Products of P tiles with one point's kernel, [P, inputs] times [inputs, V vectors].
template <int P, int V>
void Multiply(const float* from, int64_t inputs, int64_t tile, const float* weights, float* to) {
  Vector sums[P][V] = {};
  for (int64_t i = 0; i < inputs; ++i, weights += V * kLanes) {
    Vector w[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) w[v] = Load(weights + v * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[p][v] += w[v] * from[p * tile + i];
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) Store(to + (p * V + v) * kLanes, sums[p][v]);
}

template <int V>
void MultiplyAll(const float* from, int64_t tiles, int64_t inputs, int64_t tile,
                 const float* weights, float* to) {
  int64_t t = 0;
  for (; t + kPixels <= tiles; t += kPixels)
    Multiply<kPixels, V>(from + t * tile, inputs, tile, weights, to + t * V * kLanes);
  for (; t < tiles; ++t) Multiply<1, V>(from + t * tile, inputs, tile, weights, to + t * V * kLanes);
}

// Writes rows x columns (at most 2 x 2) outputs of a tile, of one vector of channels.
void TransformOutputs(const float* from, int64_t apart, float* to, int64_t row, int64_t pixel,
                      int64_t rows, int64_t columns, int64_t width, const Epilogue& after) {
  Vector half[2][4];
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const float* point = from + c * apart;
    Vector a = Load(point), b = Load(point + 4 * apart), d = Load(point + 8 * apart);
    half[0][c] = a + b + d;
    half[1][c] = b - d - Load(point + 12 * apart);
  }
  Vector factor = after.Factor(width), bias = after.Bias(width);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      Vector value = c ? half[r][1] - half[r][2] - half[r][3] : half[r][0] + half[r][1] + half[r][2];
      int64_t place = r * row + c * pixel;
      value = value * factor + bias;
      if (after.skip) value += LoadPart(after.skip + place, width);
      StorePart(to + place, Activated(after.activation, value), width);
    }
}

ffi::Error Winograd(ffi::ThreadPool pool, Array x, Array kernel, Array scale, Array offset, Array mean,
                    Array variance, Array skip, Result y, bool turned, int64_t activation,
                    float epsilon, int64_t threads) {
  auto in = x.dimensions(), k = kernel.dimensions();
  Transformed weights(kernel.typed_data(), k[2], k[3], turned);
  Image seen{in[1], in[2], in[3]};
  int64_t inputs = weights.inputs, outputs = weights.outputs, lanes = RoundUp(inputs, kLanes);
  int64_t across = (seen.columns + 1) / 2, down = (seen.rows + 1) / 2;
  int64_t width = 2 * across + 2, row = width * inputs, output_row = seen.columns * outputs;
  // Rows of tiles that are taken together fill a strip.
  int64_t together = std::clamp<int64_t>(kStrip / across, 1, down);
  int64_t pieces = (down + together - 1) / together, tiles = together * across;
  int64_t vectors = weights.vectors, apart = tiles * lanes, product = tiles * weights.lanes;
  Affine affine(scale, offset, mean, variance, epsilon);
  Epilogue epilogue = EpilogueOf(affine, skip, activation);
  ForEachPiece(pool, threads, in[0] * pieces, [&](int64_t piece) {
    int64_t image = piece / pieces, first = piece % pieces * together;
    int64_t count = std::min(together, down - first), used = count * across;
    int64_t copied_size = (2 * together + 2) * row + kLanes;
    float* copied = Scratch(copied_size + kPoints * (apart + product));
    float *points = copied + copied_size, *products = points + kPoints * apart;
    CopyRows(x.typed_data() + image * seen.size(), seen, 2 * first - 1, 2 * count + 2, -1, width,
             copied);
    for (int64_t t = 0; t < used; ++t)
      for (int64_t c = 0; c < inputs; c += kLanes)
        TransformInputs(copied + t / across * 2 * row + t % across * 2 * inputs + c, row, inputs,
                        points + t * lanes + c, apart);
    for (int64_t group = 0; group < weights.groups; ++group) {
      const float* kernels = &weights.values[group * kPoints * inputs * weights.lanes];
      for (int64_t p = 0; p < kPoints; ++p) {
        auto multiply = vectors == 1 ? MultiplyAll<1> : MultiplyAll<2>;
        multiply(points + p * apart, used, inputs, lanes, kernels + p * inputs * weights.lanes,
                 products + p * product);
      }
      for (int64_t t = 0; t < used; ++t) {
        int64_t r = 2 * (first + t / across), c = 2 * (t % across);
        int64_t pixel = image * seen.rows * output_row + r * output_row + c * outputs;
        for (int64_t v = 0; v < vectors; ++v) {
          int64_t channel = group * weights.lanes + v * kLanes;
          if (channel >= outputs) break;
          int64_t place = pixel + channel;
          TransformOutputs(products + (t * vectors + v) * kLanes, product, y->typed_data() + place,
                           output_row, outputs, std::min<int64_t>(2, seen.rows - r),
                           std::min<int64_t>(2, seen.columns - c),
                           std::min(kLanes, outputs - channel), epilogue.From(channel, place));
        }
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_winograd, Winograd,
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
                                  .Attr<bool>("turned")
                                  .Attr<int64_t>("activation")
                                  .Attr<float>("epsilon")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
