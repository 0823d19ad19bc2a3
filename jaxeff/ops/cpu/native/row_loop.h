// The step of a loop over time: a list of operations on arrays [rows, width], made of a JAX function by
// row_program.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "elementwise.h"
#include "matrices.h"
#include "vectors.h"

namespace jaxeff {

// Where an array of the step lives; the order is that of `KINDS` in row_code.py.
enum Kind { kRegister, kLocal, kLiteral, kScalar, kVector, kMatrix, kInput, kKnown, kState, kNext, kOutput, kRoom };

// More terms of a sum follow a product whose extra number is 1.
enum { kProduct = kElementwise, kJoin, kCut };

struct Slot {
  int64_t kind, index, inner, width;
};

struct Instruction {
  int64_t code, out, operands[3], extra;
};

// Operations that are done at once: element-wise ones on some numbers after others, or the terms of one
// sum of products.
struct Group {
  int64_t begin, end;
  int64_t place;  // of the sum, among those of a step that threads share
  bool ends_run;  // whether the next sum may read this one, or it is the last for now
};

struct Loop {
  std::vector<Slot> slots;
  std::vector<Instruction> code;
  std::vector<Group> groups;
  // Arrays of each kind that lies in memory, and how many inner arrays a step has of each.
  std::vector<float*> arrays[kRoom + 1];
  std::vector<int64_t> inner[kRoom + 1];
  std::vector<float*> lasts;             // states after the loop
  std::vector<bool> turned;              // whether products read them transposed
  const float* scalars;
  int64_t rows, steps, known_first, room_first;
  int64_t sums = 0;  // floats of the sums of a step
  bool reverse;

  int64_t Padded(const Slot& slot) const { return RoundUp(slot.width, kLanes); }
  bool IsProduct(const Group& group) const { return code[group.begin].code == kProduct; }

  void MakeGroups();
};

inline void Loop::MakeGroups() {
  std::vector<bool> is_sum(slots.size());
  Group group{0, 0, 0, false};
  for (size_t i = 0; i < code.size(); ++i) {
    bool is_last = i + 1 == code.size(), is_product = code[i].code == kProduct;
    if (is_product) is_sum[code[i].out] = true;
    if (!is_last && (is_product ? code[i].extra : code[i + 1].code != kProduct)) continue;
    group = {group.end, static_cast<int64_t>(i) + 1, sums, false};
    if (is_product) sums += rows * Padded(slots[code[i].out]);
    groups.push_back(group);
  }
  auto reads_sum = [&](const Group& of) {
    for (int64_t i = of.begin; i < of.end; ++i)
      for (int64_t operand : {code[i].operands[0], code[i].operands[2]})
        if (operand >= 0 && is_sum[operand]) return true;
    return false;
  };
  for (size_t g = 0; g < groups.size(); ++g)
    groups[g].ends_run = g + 1 == groups.size() || !IsProduct(groups[g + 1]) || reads_sum(groups[g + 1]);
}

}  // namespace jaxeff
