// Products of matrices in float32 and their derivatives.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "matrices.h"
#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int64_t kPieceRows = 64;       // of a piece of the work
constexpr int64_t kBlock = 512;          // rows whose outer products are summed in registers
constexpr int64_t kSmallWork = 1 << 19;  // multiply-adds below which another thread does not pay

// y_i = x K_i for kernels [depth, columns of i].
ffi::Error Products(ffi::ThreadPool pool, Array x, ffi::RemainingArgs kernels,
                    ffi::RemainingRets results, int64_t threads) {
  int64_t rows = x.dimensions()[0], depth = x.dimensions()[1];
  int64_t count = static_cast<int64_t>(kernels.size());
  std::vector<Term> terms(count);
  std::vector<float*> outputs(count);
  std::vector<int64_t> columns(count);
  int64_t work = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto kernel = kernels.get<Array>(i);
    auto y = results.get<Array>(i);
    if (!kernel.has_value()) return kernel.error();
    if (!y.has_value()) return y.error();
    terms[i] = {x.typed_data(), depth, kernel->typed_data(), depth};
    outputs[i] = (*y)->typed_data();
    columns[i] = kernel->dimensions()[1];
    work += rows * depth * columns[i];
  }
  int64_t blocks = (rows + kPieceRows - 1) / kPieceRows;
  if (work < kSmallWork) threads = 1;
  ForEachPiece(pool, threads, blocks * count, [&](int64_t piece) {
    int64_t i = piece % count, first = piece / count * kPieceRows;
    Sum sum{&terms[i], 1, nullptr, 0, outputs[i], columns[i], columns[i]};
    PartOfSum(sum, first, std::min(rows, first + kPieceRows), 0, columns[i]);
  });
  return ffi::Error::Success();
}

// y = sum of x_i K_i; arguments are all x and then all kernels [depth of i, columns].
ffi::Error SumOfProducts(ffi::ThreadPool pool, ffi::RemainingArgs args, Result y, int64_t threads) {
  int64_t count = static_cast<int64_t>(args.size()) / 2;
  int64_t rows = y->dimensions()[0], columns = y->dimensions()[1];
  std::vector<Term> terms(count);
  int64_t work = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto x = args.get<Array>(i);
    auto kernel = args.get<Array>(count + i);
    if (!x.has_value()) return x.error();
    if (!kernel.has_value()) return kernel.error();
    int64_t depth = x->dimensions()[1];
    terms[i] = {x->typed_data(), depth, kernel->typed_data(), depth};
    work += rows * columns * depth;
  }
  if (work < kSmallWork) threads = 1;
  constexpr int64_t kPieceColumns = 4 * kLanes;
  int64_t blocks = (rows + kPieceRows - 1) / kPieceRows;
  int64_t groups = threads > 1 ? (columns + kPieceColumns - 1) / kPieceColumns : 1;
  int64_t width = threads > 1 ? kPieceColumns : columns;
  Sum sum{terms.data(), count, nullptr, 0, y->typed_data(), columns, columns};
  ForEachPiece(pool, threads, blocks * groups, [&](int64_t piece) {
    int64_t first = piece / groups * kPieceRows, column = piece % groups * width;
    PartOfSum(sum, first, std::min(rows, first + kPieceRows), column,
              std::min(columns, column + width));
  });
  return ffi::Error::Success();
}

// Adds (or writes, at the start) the products of columns [column, column + P) of x and V vectors of
// columns of g, summed over rows, to the same rows and columns of the result.
template <int P, int V>
void OuterTile(const float* x, int64_t depth, const float* g, int64_t columns, int64_t rows,
               bool start, float* to) {
  Vector sums[P][V] = {};
  for (int64_t r = 0; r < rows; ++r, x += depth, g += columns) {
    Vector slope[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) slope[v] = Load(g + v * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[p][v] += slope[v] * x[p];
  }
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) {
      float* place = to + p * columns + v * kLanes;
      Store(place, start ? sums[p][v] : Load(place) + sums[p][v]);
    }
}

template <int P>
void OuterPart(const float* x, int64_t depth, const float* g, int64_t columns, int64_t rows,
               int64_t width, bool start, float* to) {
  Vector sums[P] = {};
  for (int64_t r = 0; r < rows; ++r, x += depth, g += columns) {
    Vector slope{};
    std::memcpy(&slope, g, 4 * width);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] += slope * x[p];
  }
  for (int p = 0; p < P; ++p)
    for (int64_t c = 0; c < width; ++c) to[p * columns + c] = sums[p][c] + (start ? 0 : to[p * columns + c]);
}

template <int P>
void OuterColumns(const float* x, int64_t depth, const float* g, int64_t columns, int64_t rows,
                  int64_t width, bool start, float* to) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= width; c += 2 * kLanes)
    OuterTile<P, 2>(x, depth, g + c, columns, rows, start, to + c);
  for (; c + kLanes <= width; c += kLanes)
    OuterTile<P, 1>(x, depth, g + c, columns, rows, start, to + c);
  if (c < width) OuterPart<P>(x, depth, g + c, columns, rows, width - c, start, to + c);
}

// x^T g of x [rows, depth] and g [rows, columns].
ffi::Error OuterProduct(ffi::ThreadPool pool, Array x, Array g, Result result, int64_t threads) {
  static constexpr void (*kParts[])(const float*, int64_t, const float*, int64_t, int64_t, int64_t,
                                    bool, float*) = {
      OuterColumns<1>, OuterColumns<2>, OuterColumns<3>, OuterColumns<4>,
      OuterColumns<5>, OuterColumns<6>, OuterColumns<7>, OuterColumns<8>};
  int64_t rows = x.dimensions()[0], depth = x.dimensions()[1], columns = g.dimensions()[1];
  if (rows * depth * columns < kSmallWork) threads = 1;
  // Pieces are groups of columns, so that the order of additions does not depend on the threads.
  constexpr int64_t kPieceColumns = 4 * kLanes;
  int64_t width = threads > 1 ? kPieceColumns : columns;
  int64_t groups = (columns + width - 1) / width;
  ForEachPiece(pool, threads, groups, [&](int64_t group) {
    int64_t column = group * width, count = std::min(width, columns - column);
    for (int64_t r = 0; r < rows; r += kBlock)
      for (int64_t c = 0; c < count; c += kPieceColumns)
        for (int64_t d = 0; d < depth; d += kTileRows)
          kParts[std::min<int64_t>(kTileRows, depth - d) - 1](
              x.typed_data() + r * depth + d, depth, g.typed_data() + r * columns + column + c, columns,
              std::min(kBlock, rows - r), std::min(kPieceColumns, count - c), r == 0,
              result->typed_data() + d * columns + column + c);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_products, Products,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_sum_of_products, SumOfProducts,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_outer_product, OuterProduct,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
