"""Floating-point instructions as C99."""

from __future__ import annotations

from typing import Any

from jaxeff.exporting.c.dialect import Dialect

_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_FUNCTIONS = {
    "abs": "fabsf",
    "cos": "cosf",
    "erf": "erff",
    "exp": "expf",
    "log": "logf",
    "sin": "sinf",
    "sqrt": "sqrtf",
}

_DENSE = """\
/* Products of one block of n outputs: sums over inputs of a[i] * kernel[i * n + k]. */
static inline void dense(const float *restrict a, int inputs, const float *restrict kernel, int n,
                         float *restrict out) {
  int i = 0;
  for (int k = 0; k < n; k++) out[k] = 0.0f;
  for (; i + 4 <= inputs; i += 4, kernel += 4 * n) {
    const float a0 = a[i], a1 = a[i + 1], a2 = a[i + 2], a3 = a[i + 3];
    for (int k = 0; k < n; k++) {
      out[k] += a0 * kernel[k] + a1 * kernel[n + k] + a2 * kernel[2 * n + k] +
                a3 * kernel[3 * n + k];
    }
  }
  for (; i < inputs; i++, kernel += n) {
    for (int k = 0; k < n; k++) out[k] += a[i] * kernel[k];
  }
}
"""
# The quotient of polynomials that Eigen and XLA use too.
_TANH = """\
/* tanh within 3e-7: a quotient of polynomials of x, which is held within +-7.9053111. Compilers
 * make vector operations of comparisons of bits, and jumps of those of floats. NaN becomes +-1. */
static inline float squash(float x) {
  union {
    float real;
    int32_t bits;
  } held = {x};
  const int32_t sign = held.bits & INT32_MIN, magnitude = held.bits & INT32_MAX;
  held.bits = (magnitude < 0x40fcf84f ? magnitude : 0x40fcf84f) | sign;
  const float c = held.real, s = c * c;
  float p = -2.76076847742355e-16f;
  float q = 1.19825839466702e-06f;
  p = p * s + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return c * p / q;
}
"""


class Floats(Dialect):
    """Single precision; tanh and the logistic function without libm."""

    kind = scalar = "float"
    block = 16

    def declarations(self) -> str:
        """See `Dialect`."""
        needs_libm = {*_FUNCTIONS, "rsqrt"} & set(self.operations)
        return "#include <math.h>\n" if needs_libm else ""

    def functions(self) -> str:
        """See `Dialect`."""
        operations = set(self.operations)
        parts = []
        if operations & {"tanh", "logistic"}:
            parts.append(_TANH)
        if "dense" in operations:
            parts.append(_DENSE)
        return "\n".join(parts)

    def dense(self, instruction: Any, operand: str, kind: str) -> str:
        """See `Dialect`."""
        inputs, output = instruction.constant.shape[0], instruction.output
        kernel = self.kernel(instruction)
        return f"dense({operand}, {inputs}, {kernel} + j * {inputs}, n, v{output});"

    def expression(self, instruction: Any, operands: list[str]) -> str:
        """See `Dialect`."""
        op = instruction.op
        if op in _OPERATORS:
            return f"{operands[0]} {_OPERATORS[op]} {operands[1]}"
        if op in _FUNCTIONS:
            return f"{_FUNCTIONS[op]}({operands[0]})"
        if op in ("max", "min"):
            a, b = operands
            return f"{a} {'>' if op == 'max' else '<'} {b} ? {a} : {b}"
        a = operands[0]
        return {
            "neg": f"-({a})",
            "rsqrt": f"1.0f / sqrtf({a})",
            "tanh": f"squash({a})",
            "logistic": f"0.5f + 0.5f * squash(0.5f * {a})",
        }[op]
