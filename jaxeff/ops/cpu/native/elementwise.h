// Operations on each number of arrays [rows, width] by itself, a vector at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "vector_math.h"
#include "vectors.h"

namespace jaxeff {

// An array in memory: the number at [r, c] of whole vectors is base[r * row + c / kLanes * lane + ...].
struct Place {
  float* base;
  int64_t row, lane;
};

struct Operands {
  Place out, a, b, c;
  int64_t rows, vectors, extra;

  // One long row if all arrays are contiguous.
  void Join() {
    int64_t width = vectors * kLanes;
    for (const Place* place : {&out, &a, &b, &c}) {
      bool is_whole = place->row == width && place->lane == kLanes;
      bool is_scalar = place->row == 0 && place->lane == 0;
      if (!is_whole && !is_scalar) return;
    }
    vectors *= rows;
    rows = 1;
  }
};

using Operation = void (*)(Operands&);

// Places are copied to locals, which no store to an array can change.
template <typename F>
inline void Apply1(Operands& o, const F& f) {
  o.b = o.c = o.a;
  o.Join();
  const int64_t rows = o.rows, vectors = o.vectors, lane = o.a.lane;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = o.out.base + r * o.out.row;
    const float* a = o.a.base + r * o.a.row;
    for (int64_t v = 0; v < vectors; ++v) Store(out + v * kLanes, f(Load(a + v * lane)));
  }
}

template <typename F>
inline void Apply2(Operands& o, const F& f) {
  o.c = o.a;
  o.Join();
  const int64_t rows = o.rows, vectors = o.vectors, of_a = o.a.lane, of_b = o.b.lane;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = o.out.base + r * o.out.row;
    const float *a = o.a.base + r * o.a.row, *b = o.b.base + r * o.b.row;
    for (int64_t v = 0; v < vectors; ++v)
      Store(out + v * kLanes, f(Load(a + v * of_a), Load(b + v * of_b)));
  }
}

template <typename F>
inline void Apply3(Operands& o, const F& f) {
  o.Join();
  const int64_t rows = o.rows, vectors = o.vectors;
  const int64_t of_a = o.a.lane, of_b = o.b.lane, of_c = o.c.lane;
  for (int64_t r = 0; r < rows; ++r) {
    float* out = o.out.base + r * o.out.row;
    const float *a = o.a.base + r * o.a.row, *b = o.b.base + r * o.b.row, *c = o.c.base + r * o.c.row;
    for (int64_t v = 0; v < vectors; ++v)
      Store(out + v * kLanes, f(Load(a + v * of_a), Load(b + v * of_b), Load(c + v * of_c)));
  }
}

#define UNARY(expression) \
  [](Operands& o) { Apply1(o, [extra = o.extra](Vector a) -> Vector { (void)extra; return expression; }); }
#define BINARY(expression) \
  [](Operands& o) { Apply2(o, [](Vector a, Vector b) -> Vector { return expression; }); }
#define TERNARY(expression) \
  [](Operands& o) { Apply3(o, [](Vector a, Vector b, Vector c) -> Vector { return expression; }); }
#define LANES(function) UNARY(EachLane(a, [](float x) -> float { return function(x); }))
#define TRUTH(condition) BINARY((condition) ? Fill(1.0f) : Vector{})

inline Vector Power(Vector a, int64_t exponent) {
  Vector power = Fill(1.0f), base = a;
  for (int64_t n = std::abs(exponent); n; n >>= 1, base *= base)
    if (n & 1) power *= base;
  return exponent < 0 ? 1.0f / power : power;
}

inline void Column(Operands& o) {
  for (int64_t r = 0; r < o.rows; ++r)
    for (int64_t v = 0; v < o.vectors; ++v)
      Store(o.out.base + r * o.out.row + v * kLanes, Fill(o.a.base[r * o.a.row]));
}

// The order is that of `OPERATIONS` in row_code.py; products, joins and cuts are not among them.
const Operation kOperations[] = {
    UNARY(a),
    Column,
    BINARY(a + b),
    BINARY(a - b),
    BINARY(a * b),
    BINARY(a / b),
    BINARY(Max(a, b)),
    BINARY(Min(a, b)),
    UNARY(-a),
    UNARY(a < 0 ? -a : a),
    UNARY(a > 0 ? Fill(1.0f) : a < 0 ? Fill(-1.0f) : a),
    UNARY(Exp(a)),
    UNARY(Tanh(a)),
    UNARY(Logistic(a)),
    UNARY(a * a),
    UNARY(Power(a, extra)),
    LANES(std::sqrt),
    UNARY(1.0f / EachLane(a, [](float x) -> float { return std::sqrt(x); })),
    LANES(std::log),
    LANES(std::log1p),
    LANES(std::expm1),
    LANES(std::sin),
    LANES(std::cos),
    TRUTH(a == b),
    TRUTH(a != b),
    TRUTH(a < b),
    TRUTH(a <= b),
    TRUTH(a > b),
    TRUTH(a >= b),
    BINARY(a * b),
    BINARY(Max(a, b)),
    UNARY(1.0f - a),
    TERNARY(a != 0 ? c : b),
    TERNARY(a * b + c),
    BINARY(a * (1.0f - b)),
    UNARY(1.0f - a * a),
    BINARY(a * (b * (1.0f - b))),
    BINARY(a * (1.0f - b * b)),
};
constexpr int64_t kElementwise = sizeof(kOperations) / sizeof(kOperations[0]);

#undef UNARY
#undef BINARY
#undef TERNARY
#undef LANES
#undef TRUTH

}  // namespace jaxeff
