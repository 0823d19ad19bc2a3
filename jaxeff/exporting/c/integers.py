"""Integer instructions as C99; what each computes is said in `jaxeff.quantize`."""

from __future__ import annotations

from typing import Any

from jaxeff.exporting.c.dialect import Dialect
from jaxeff.quantize import IntegerProgram, arithmetic

_ARITHMETIC = """\
/* Shifts to the right of negative numbers round down, as every compiler in use does. */
static inline int32_t shift_left(int32_t x, int bits) { return (int32_t)((uint32_t)x << bits); }
static inline int32_t shift_right(int32_t x, int bits) {
  return bits ? ((x >> (bits - 1)) + 1) >> 1 : x;
}
static inline int32_t saturate(int32_t x, int32_t high) {
  return x > high ? high : x < -high - 1 ? -high - 1 : x;
}
"""
_DENSE_LAYER = """\
typedef struct {
  const int8_t *kernel;
  const int16_t *multipliers; /* one for each output */
  int16_t inputs;
  int16_t high; /* the greatest output */
  uint8_t left, right;
} dense_layer;
"""
_DENSE = """\
/* Products of one block of n outputs, from output j on. */
static void {name}(const dense_layer *layer, const {kind} *a, int j, int n, int32_t *out) {{
  const int inputs = layer->inputs;
  const int8_t *kernel = layer->kernel + (int32_t)j * inputs;
  int32_t sums[4] = {{0, 0, 0, 0}};
  if (n == 4) {{
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (int i = 0; i < inputs; i++, kernel += 4) {{
      const int32_t x = a[i];
      s0 += x * kernel[0];
      s1 += x * kernel[1];
      s2 += x * kernel[2];
      s3 += x * kernel[3];
    }}
    sums[0] = s0;
    sums[1] = s1;
    sums[2] = s2;
    sums[3] = s3;
  }} else {{
    for (int i = 0; i < inputs; i++) {{
      for (int k = 0; k < n; k++) sums[k] += (int32_t)a[i] * *kernel++;
    }}
  }}
  for (int k = 0; k < n; k++) {{
    const int64_t sum = shift_left(sums[k], layer->left);
    const int32_t product = (int32_t)((sum * layer->multipliers[j + k]) >> 16);
    out[k] = saturate(shift_right(product, layer->right), layer->high);
  }}
}}
"""
_SQUASH = """\
/* tanh of x * 2**left (of x * 2**-right) with 15 fraction bits, by interpolation in a table. */
static int32_t squash(int32_t x, int left, int right) {{
  const int32_t magnitude = x < 0 ? -x : x;
  int32_t position = shift_right(shift_left(magnitude, left), right);
  if (position > {last}) position = {last};
  const int16_t *entry = {table} + (position >> {between});
  const int32_t slope = (int32_t)entry[1] - entry[0];
  const int32_t y =
      entry[0] + shift_right(slope * (position & {mask}), {between});
  return x < 0 ? -y : y;
}}
"""
_LOOKUP_TABLE = """\
typedef struct {
  const int16_t *table;
  int16_t start, end; /* least and greatest argument */
  uint8_t left;
} lookup_table;
"""
_LOOKUP = """\
static int32_t lookup(const lookup_table *function, int32_t a) {
  if (a > function->end) a = function->end;
  if (a < function->start) a = function->start;
  const int32_t position = shift_left(a - function->start, function->left);
  const int16_t *entry = function->table + (position >> 16);
  const int32_t slope = (int32_t)entry[1] - entry[0];
  return entry[0] + shift_right(slope * ((position & 65535) >> 1), 15);
}
"""
#: Functions of products, by the C type of their operand.
_DENSE_NAMES = {"int16_t": "dense", "int8_t": "dense_of_bytes"}


class Integers(Dialect):
    """Integers of 16 or 8 bits in memory and 32 in registers; no floating point, no libm."""

    kind, scalar = "int16_t", "int32_t"
    block = 4

    def __init__(self, program: IntegerProgram):
        super().__init__(program)
        self.operand_kinds: set[str] = set()  # of products

    def declarations(self) -> str:
        """See `Dialect`."""
        types = {"dense": _DENSE_LAYER, "lookup": _LOOKUP_TABLE}
        return "\n".join(text for op, text in types.items() if op in self.operations)

    def stored(self, number: int) -> str:
        """See `Dialect`."""
        return "int8_t" if self.program.bits[number] == 8 else self.kind

    def functions(self) -> str:
        """See `Dialect`."""
        operations = set(self.operations)
        parts = [_ARITHMETIC]
        for kind in sorted(self.operand_kinds):
            parts.append(_DENSE.format(name=_DENSE_NAMES[kind], kind=kind))
        if operations & {"tanh", "logistic"}:
            table = self.arrays.add(
                "tanh_table",
                arithmetic.TANH_TABLE,
                f"tanh at 0, 1/{1 << arithmetic.TABLE_STEP_BITS}, ..., {arithmetic.TABLE_END}",
            )
            parts.append(
                _SQUASH.format(
                    table=table,
                    last=arithmetic.LAST_POSITION,
                    between=arithmetic.BETWEEN_BITS,
                    mask=(1 << arithmetic.BETWEEN_BITS) - 1,
                )
            )
        if "lookup" in operations:
            parts.append(_LOOKUP)
        return "\n".join(parts)

    def high(self, number: int) -> int:
        """Returns the greatest integer that a value may be."""
        greatest: int = (1 << (self.program.bits[number] - 1)) - 1
        return greatest

    def dense(self, instruction: Any, operand: str, kind: str) -> str:
        """See `Dialect`."""
        self.operand_kinds.add(kind)
        output, at = instruction.output, instruction.attributes
        kernel = self.kernel(instruction)
        multipliers = self.arrays.add(
            f"multipliers_v{output}",
            instruction.multipliers,
            f"factors of the outputs of v{output}",
        )
        self.arrays.definitions.append(
            f"static const dense_layer dense_v{output} = {{{kernel}, {multipliers}, "
            f"{len(instruction.constant)}, {self.high(output)}, {at['left']}, {at['right']}}};\n"
        )
        return f"{_DENSE_NAMES[kind]}(&dense_v{output}, {operand}, j, n, v{output});"

    def expression(self, instruction: Any, operands: list[str]) -> str:
        """See `Dialect`."""
        op, at, output = instruction.op, instruction.attributes, instruction.output
        if op in ("max", "min"):
            a, b = operands
            return f"{a} {'>' if op == 'max' else '<'} {b} ? {a} : {b}"
        if op == "tanh":
            return self._squashed(operands[0], arithmetic.POSITION_FRACTION, at)
        if op == "logistic":
            tanh = self._squashed(operands[0], arithmetic.POSITION_FRACTION - 1, at)
            return f"shift_right({1 << arithmetic.UNIT_FRACTION} + {tanh}, 1)"
        if op == "lookup":
            return self._looked_up(instruction, operands[0])
        return f"saturate({self._unbounded(op, operands, at)}, {self.high(output)})"

    def _unbounded(self, op: str, operands: list[str], at: Any) -> str:
        """Returns what an instruction computes before it is saturated."""
        a = operands[0]
        if op in ("add", "sub"):
            sign = "+" if op == "add" else "-"
            terms = f"{_left(a, at['left_a'])} {sign} {_left(operands[1], at['left_b'])}"
            return _right(terms, at["right"])
        if op == "mul":
            return _right(f"{a} * {operands[1]}", at["right"])
        if op == "rescale":
            return _right(_left(a, at["left"]), at["right"])
        return {"neg": f"-({a})", "abs": f"{a} < 0 ? -({a}) : {a}"}[op]

    def _squashed(self, operand: str, fraction: int, at: Any) -> str:
        bits = fraction - at["input_fraction"]
        return f"squash({operand}, {max(bits, 0)}, {max(-bits, 0)})"

    def _looked_up(self, instruction: Any, operand: str) -> str:
        output, at = instruction.output, instruction.attributes
        entries = instruction.constant
        table = self.arrays.add(f"table_v{output}", entries, f"the function of v{output}")
        self.arrays.definitions.append(
            f"static const lookup_table lookup_v{output} = {{{table}, {at['start']}, {at['end']}, "
            f"{at['left']}}};\n"
        )
        return f"lookup(&lookup_v{output}, {operand})"


def _left(operand: str, bits: int) -> str:
    return f"shift_left({operand}, {bits})" if bits else operand


def _right(operand: str, bits: int) -> str:
    return f"shift_right({operand}, {bits})" if bits else operand
