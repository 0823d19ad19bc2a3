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

#if defined(__AVX512F__)
// Copies the transpose of a square of vectors: a row of the matrix is a column of the copy.
inline void TransposeSquare(const float* matrix, int64_t row, float* to, int64_t to_row) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(matrix + i * row);
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  // Here quarter l of a[4 q + j] holds column 4 l + j of rows 4 q to 4 q + 3.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    __m512 even[2], odd[2];
    for (int h = 0; h < 2; ++h) {
      even[h] = _mm512_shuffle_f32x4(a[8 * h + j], a[8 * h + 4 + j], 0x88);
      odd[h] = _mm512_shuffle_f32x4(a[8 * h + j], a[8 * h + 4 + j], 0xdd);
    }
    _mm512_storeu_ps(to + j * to_row, _mm512_shuffle_f32x4(even[0], even[1], 0x88));
    _mm512_storeu_ps(to + (4 + j) * to_row, _mm512_shuffle_f32x4(odd[0], odd[1], 0x88));
    _mm512_storeu_ps(to + (8 + j) * to_row, _mm512_shuffle_f32x4(even[0], even[1], 0xdd));
    _mm512_storeu_ps(to + (12 + j) * to_row, _mm512_shuffle_f32x4(odd[0], odd[1], 0xdd));
  }
}
#else
inline void TransposeSquare(const float* matrix, int64_t row, float* to, int64_t to_row) {
  for (int64_t c = 0; c < kLanes; ++c)
    for (int64_t k = 0; k < kLanes; ++k) to[k * to_row + c] = matrix[c * row + k];
}
#endif

// Copies the transpose of a matrix [columns, depth] to rows [first, last) of [depth, columns].
inline void Transpose(const float* matrix, int64_t depth, int64_t columns, int64_t first,
                      int64_t last, float* to) {
  for (int64_t k = first; k < last; k += kLanes) {
    int64_t c = 0, end = std::min(last, k + kLanes);
    if (end - k == kLanes)
      for (; c + kLanes <= columns; c += kLanes)
        TransposeSquare(matrix + c * depth + k, depth, to + k * columns + c, columns);
    for (; c < columns; ++c)
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

// C columns of one row times kernels that lie transposed, [columns, depth].
template <int C>
void TurnedTile(const Sum& sum, int64_t column) {
  Vector sums[C] = {};
  for (int64_t i = 0; i < sum.count; ++i) {
    const Term& term = sum.terms[i];
    const float* weights = term.kernel + column * term.depth;
    int64_t k = 0;
    for (; k + kLanes <= term.depth; k += kLanes) {
      Vector x = Load(term.rows + k);
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) sums[c] += x * Load(weights + c * term.depth + k);
    }
    if (k == term.depth) continue;
    int64_t width = term.depth - k;
    Vector x = LoadPart(term.rows + k, width);
    for (int c = 0; c < C; ++c) sums[c] += x * LoadPart(weights + c * term.depth + k, width);
  }
  for (int c = 0; c < C; ++c) {
    float lanes[kLanes];
    Store(lanes, sums[c]);
    for (int64_t half = kLanes / 2; half; half /= 2)
      for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[half + i];
    sum.y[column + c] = lanes[0] + (sum.start ? sum.start[column + c] : 0.0f);
  }
}

// Columns [column, end) of one row times kernels that lie transposed, which takes no longer than to
// read them, and less than to transpose them first.
inline void PartOfTurnedRow(const Sum& sum, int64_t column, int64_t end) {
  for (; column + 8 <= end; column += 8) TurnedTile<8>(sum, column);
  for (; column < end; ++column) TurnedTile<1>(sum, column);
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
