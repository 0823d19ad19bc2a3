// Rows times matrices, by tiles of a few rows times a few vectors of columns whose sums stay in
// registers. Matrices are read where they lie: those of recurrences fit a core's cache.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace jaxeff {

constexpr int kTileRows = 8;

// One of the products that are added up: rows [rows, depth] times a kernel [depth, columns].
struct Term {
  const float* rows;
  int64_t stride;  // from a row to the next
  const float* kernel;
  int64_t depth;
};

// A sum of products, and where it goes.
struct Sum {
  const Term* terms;
  int64_t count;
  const float* start;  // added to the sum, or null
  int64_t start_stride;
  float* y;
  int64_t y_stride;
  int64_t columns;  // of the kernels
};

// Copies the transpose of a matrix [columns, depth] to [depth, columns].
inline void Transpose(const float* matrix, int64_t depth, int64_t columns, float* to) {
  constexpr int64_t kSquare = 16;  // a line of a cache
  for (int64_t k = 0; k < depth; k += kSquare) {
    int64_t end = std::min(depth, k + kSquare);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t i = k; i < end; ++i) to[i * columns + c] = matrix[c * depth + i];
  }
}

// Adds the products of P rows to sums of V vectors of columns.
template <int P, int V>
void AddProducts(const Term& term, int64_t first, int64_t column, int64_t columns, Vector (&sums)[P][V]) {
  const float* weights = term.kernel + column;
  const float* rows = term.rows + first * term.stride;
  for (int64_t k = 0; k < term.depth; ++k, weights += columns) {
    Vector w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = Load(weights + v * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[p][v] += w[v] * rows[p * term.stride + k];
  }
}

// The first of the remaining columns, fewer than a vector has lanes.
template <int P>
void AddLastProducts(const Term& term, int64_t first, int64_t column, int64_t columns, Vector (&sums)[P]) {
  const float* weights = term.kernel + column;
  const float* rows = term.rows + first * term.stride;
  for (int64_t k = 0; k < term.depth; ++k, weights += columns) {
    Vector w{};
    std::memcpy(&w, weights, 4 * (columns - column));
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[p] += w * rows[p * term.stride + k];
  }
}

template <int P, int V>
void Tile(const Sum& sum, int64_t first, int64_t column) {
  Vector sums[P][V] = {};
  if (sum.start)
    for (int p = 0; p < P; ++p)
      for (int v = 0; v < V; ++v)
        sums[p][v] = Load(sum.start + (first + p) * sum.start_stride + column + v * kLanes);
  for (int64_t i = 0; i < sum.count; ++i)
    AddProducts<P, V>(sum.terms[i], first, column, sum.columns, sums);
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v)
      Store(sum.y + (first + p) * sum.y_stride + column + v * kLanes, sums[p][v]);
}

template <int P>
void TileColumns(const Sum& sum, int64_t first, int64_t column, int64_t end) {
  // Enough sums to hide the latency of an addition, no more than there are registers.
  constexpr int kMost = P == 1 ? 8 : P <= 4 ? 4 : 2;
  for (; column + kMost * kLanes <= end; column += kMost * kLanes) Tile<P, kMost>(sum, first, column);
  if constexpr (kMost > 4)
    for (; column + 4 * kLanes <= end; column += 4 * kLanes) Tile<P, 4>(sum, first, column);
  if constexpr (kMost > 2)
    for (; column + 2 * kLanes <= end; column += 2 * kLanes) Tile<P, 2>(sum, first, column);
  for (; column + kLanes <= end; column += kLanes) Tile<P, 1>(sum, first, column);
  if (column == end) return;
  int64_t width = end - column;
  Vector sums[P] = {};
  if (sum.start)
    for (int p = 0; p < P; ++p)
      std::memcpy(&sums[p], sum.start + (first + p) * sum.start_stride + column, 4 * width);
  for (int64_t i = 0; i < sum.count; ++i)
    AddLastProducts<P>(sum.terms[i], first, column, sum.columns, sums);
  for (int p = 0; p < P; ++p) std::memcpy(sum.y + (first + p) * sum.y_stride + column, &sums[p], 4 * width);
}

// Rows [first, last) and columns [column, end) of a sum; `end` is the last column or a multiple of
// the lanes after `column`.
inline void PartOfSum(const Sum& sum, int64_t first, int64_t last, int64_t column, int64_t end) {
  static constexpr void (*kColumns[])(const Sum&, int64_t, int64_t, int64_t) = {
      TileColumns<1>, TileColumns<2>, TileColumns<3>, TileColumns<4>,
      TileColumns<5>, TileColumns<6>, TileColumns<7>, TileColumns<8>};
  // Columns are the outer loop: what is read of the kernels for them stays in the first cache.
  constexpr int64_t kGroup = 8 * kLanes;
  for (int64_t c = column; c < end; c += kGroup)
    for (int64_t r = first; r < last; r += kTileRows)
      kColumns[std::min<int64_t>(kTileRows, last - r) - 1](sum, r, c, std::min(end, c + kGroup));
}

}  // namespace jaxeff
