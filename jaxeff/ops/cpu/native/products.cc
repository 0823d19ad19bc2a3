// Products of matrices in float32, by tiles of a few rows times a few vectors of columns whose sums
// stay in registers. Matrices are read where they lie: those of recurrences fit a core's cache.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

constexpr int kRows = 8;                 // of a tile
constexpr int64_t kPieceRows = 64;       // of a piece of the work
constexpr int64_t kBlock = 128;          // rows whose outer products are summed in registers
constexpr int64_t kSmallWork = 1 << 19;  // multiply-adds below which another thread does not pay

// One of the products that a tile adds up: rows [rows, depth] times a kernel [depth, columns].
struct Term {
  const float* rows;
  const float* kernel;
  int64_t depth;
};

// Adds the products of P rows to sums of V vectors of columns; `stride` is that of the kernels.
template <int P, int V>
void Add(const Term& term, int64_t stride, Vector (&sums)[P][V]) {
  const float* weights = term.kernel;
  for (int64_t k = 0; k < term.depth; ++k, weights += stride) {
    Vector w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = Load(weights + v * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[p][v] += w[v] * term.rows[p * term.depth + k];
  }
}

// The first of the remaining columns, fewer than a vector has lanes.
template <int P>
void AddPart(const Term& term, int64_t stride, int64_t width, Vector (&sums)[P][1]) {
  const float* weights = term.kernel;
  for (int64_t k = 0; k < term.depth; ++k, weights += stride) {
    Vector w{};
    std::memcpy(&w, weights, 4 * width);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p][0] += w * term.rows[p * term.depth + k];
  }
}

template <int P, int V>
void Tile(const std::vector<Term>& terms, int64_t first, int64_t column, int64_t columns, float* y) {
  Vector sums[P][V] = {};
  for (Term term : terms) {
    term.rows += first * term.depth;
    term.kernel += column;
    Add<P, V>(term, columns, sums);
  }
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) Store(y + (first + p) * columns + column + v * kLanes, sums[p][v]);
}

template <int P>
void Columns(const std::vector<Term>& terms, int64_t first, int64_t column, int64_t end,
             int64_t columns, float* y) {
  // Enough sums to hide the latency of an addition, no more than there are registers.
  constexpr int kMost = P == 1 ? 8 : P <= 4 ? 4 : 2;
  for (; column + kMost * kLanes <= end; column += kMost * kLanes)
    Tile<P, kMost>(terms, first, column, columns, y);
  for (; column + kLanes <= end; column += kLanes) Tile<P, 1>(terms, first, column, columns, y);
  if (column == end) return;
  Vector sums[P][1] = {};
  for (Term term : terms) {
    term.rows += first * term.depth;
    term.kernel += column;
    AddPart<P>(term, columns, end - column, sums);
  }
  for (int p = 0; p < P; ++p)
    std::memcpy(y + (first + p) * columns + column, &sums[p][0], 4 * (end - column));
}

// Rows and columns of a part of the sum of terms.
void Part(const std::vector<Term>& terms, int64_t first, int64_t last, int64_t column, int64_t end,
          int64_t columns, float* y) {
  static constexpr void (*kColumns[])(const std::vector<Term>&, int64_t, int64_t, int64_t, int64_t,
                                      float*) = {Columns<1>, Columns<2>, Columns<3>, Columns<4>,
                                                 Columns<5>, Columns<6>, Columns<7>, Columns<8>};
  // Columns are the outer loop: what is read of the kernels for them stays in the first cache.
  constexpr int64_t kGroup = 8 * kLanes;
  for (int64_t c = column; c < end; c += kGroup)
    for (int64_t r = first; r < last; r += kRows)
      kColumns[std::min<int64_t>(kRows, last - r) - 1](terms, r, c, std::min(end, c + kGroup),
                                                       columns, y);
}

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
    terms[i] = {x.typed_data(), kernel->typed_data(), depth};
    outputs[i] = (*y)->typed_data();
    columns[i] = kernel->dimensions()[1];
    work += rows * depth * columns[i];
  }
  int64_t blocks = (rows + kPieceRows - 1) / kPieceRows;
  if (work < kSmallWork) threads = 1;
  ForEachPiece(pool, threads, blocks * count, [&](int64_t piece) {
    int64_t i = piece % count, first = piece / count * kPieceRows;
    Part({terms[i]}, first, std::min(rows, first + kPieceRows), 0, columns[i], columns[i], outputs[i]);
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
    terms[i] = {x->typed_data(), kernel->typed_data(), x->dimensions()[1]};
    work += rows * columns * terms[i].depth;
  }
  if (work < kSmallWork) threads = 1;
  constexpr int64_t kPieceColumns = 4 * kLanes;
  int64_t blocks = (rows + kPieceRows - 1) / kPieceRows;
  int64_t groups = threads > 1 ? (columns + kPieceColumns - 1) / kPieceColumns : 1;
  int64_t width = threads > 1 ? kPieceColumns : columns;
  ForEachPiece(pool, threads, blocks * groups, [&](int64_t piece) {
    int64_t first = piece / groups * kPieceRows, column = piece % groups * width;
    Part(terms, first, std::min(rows, first + kPieceRows), column, std::min(columns, column + width),
         columns, y->typed_data());
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
        for (int64_t d = 0; d < depth; d += kRows)
          kParts[std::min<int64_t>(kRows, depth - d) - 1](
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
