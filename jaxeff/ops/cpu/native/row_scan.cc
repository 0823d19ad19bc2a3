// A loop over time whose rows do not depend on each other: a thread takes some of the rows through
// all steps, so that what they need stays in its core's cache and no thread waits for another. The
// step is a list of operations on arrays [rows, width], made of a JAX function by row_program.py.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "elementwise.h"
#include "matrices.h"
#include "parallel.h"
#include "vectors.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {
namespace {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Numbers = ffi::Buffer<ffi::S32>;
using Attribute = ffi::Span<const int64_t>;

constexpr int64_t kMostRows = 32;        // of a piece: its arrays stay in the second cache
constexpr int64_t kChunk = 1024;         // floats of an array that element-wise operations take at once
constexpr int64_t kSmallWork = 1 << 19;  // multiply-adds below which another thread does not pay

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

struct Loop {
  std::vector<Slot> slots;
  std::vector<Instruction> code;
  std::vector<int64_t> groups;  // ends of runs of element-wise operations and of the terms of a sum
  // Arrays of each kind that lies in memory, and how many inner arrays a step has of each.
  std::vector<float*> arrays[kRoom + 1];
  std::vector<int64_t> inner[kRoom + 1];
  std::vector<float*> lasts;             // states after the loop
  std::vector<int64_t> depths, columns;  // of the matrices
  std::vector<bool> turned;              // whether they lie transposed
  std::vector<float> copies;             // matrices as products read them
  bool is_packed;                        // whether that is in panels
  const float* scalars;
  int64_t rows, steps, known_first, room_first;
  bool reverse;

  int64_t Padded(const Slot& slot) const { return RoundUp(slot.width, kLanes); }
  bool IsMoving(const Slot& slot) const {
    return slot.kind == kInput || slot.kind == kKnown || slot.kind == kOutput || slot.kind == kRoom;
  }
  bool IsWritten(const Slot& slot) const { return slot.kind == kOutput || slot.kind == kRoom; }
  // Whether rows are not whole vectors, so that a piece has a copy of its own.
  bool IsCopied(const Slot& slot) const { return IsMoving(slot) && slot.width % kLanes; }

  void CopyMatrices();
  void Run(int64_t first, int64_t count) const;
  void Execute(int64_t begin, int64_t end, const std::vector<Place>& places, int64_t count,
               std::vector<Term>& terms) const;
};

// 64-byte aligned memory of a thread, zeros at first: lanes beyond an array's width hold numbers.
float* Workspace(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats + 16) memory.assign(floats + 16, 0.0f);
  auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((address + 63) / 64 * 64);
}

void CopyRows(const float* from, int64_t from_row, float* to, int64_t to_row, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * to_row, from + r * from_row, 4 * width);
}

// Runs all steps for rows [first, first + count).
void Loop::Run(int64_t first, int64_t count) const {
  std::vector<Place> places(slots.size());
  std::vector<int64_t> offsets(slots.size());
  std::vector<Term> terms;
  std::vector<int64_t> registers, locals;  // where each begins
  int64_t total = 0;
  auto take = [&](int64_t floats) {
    int64_t place = total;
    total += RoundUp(floats, 16);
    return place;
  };
  std::vector<int64_t> state_of(lasts.size());
  for (size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    int64_t row = Padded(slot);
    if (slot.kind == kLocal) {
      if (static_cast<int64_t>(locals.size()) <= slot.index) locals.resize(slot.index + 1, -1);
      if (locals[slot.index] < 0) locals[slot.index] = take(std::max(row, kChunk));
      offsets[s] = locals[slot.index];
      places[s] = {nullptr, row, kLanes};
    } else if (slot.kind == kRegister) {
      if (static_cast<int64_t>(registers.size()) <= slot.index) registers.resize(slot.index + 1, -1);
      if (registers[slot.index] < 0) registers[slot.index] = take(count * row);
      offsets[s] = registers[slot.index];
      places[s] = {nullptr, row, kLanes};
    } else if (slot.kind == kLiteral || slot.kind == kScalar) {
      offsets[s] = take(kLanes);
      places[s] = {nullptr, 0, 0};
    } else if (slot.kind == kVector) {
      offsets[s] = take(row);
      places[s] = {nullptr, 0, kLanes};
    } else if (slot.kind == kState) {
      offsets[s] = state_of[slot.index] = take(2 * count * row);
      places[s] = {nullptr, row, kLanes};
    } else if (IsMoving(slot)) {
      offsets[s] = IsCopied(slot) ? take(count * row) : -1;
      places[s] = {nullptr, IsCopied(slot) ? row : slot.width, kLanes};
    } else if (slot.kind == kNext) {
      places[s] = {nullptr, row, kLanes};
    }
  }
  float* memory = Workspace(total);
  for (size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    Place& place = places[s];
    if (slot.kind <= kLocal || IsCopied(slot)) place.base = memory + offsets[s];
    if (slot.kind == kLiteral || slot.kind == kScalar) {
      float value;
      int32_t bits = static_cast<int32_t>(slot.index);
      std::memcpy(&value, &bits, 4);
      place.base = memory + offsets[s];
      Store(place.base, Fill(slot.kind == kLiteral ? value : scalars[slot.index]));
    }
    if (slot.kind == kVector) {
      place.base = memory + offsets[s];
      std::memcpy(place.base, arrays[kVector][slot.index] + slot.inner * slot.width, 4 * slot.width);
    }
    if (slot.kind == kState)
      CopyRows(arrays[kState][slot.index] + first * slot.width, slot.width, memory + offsets[s], place.row, count,
               slot.width);
  }
  for (int64_t i = 0; i < steps; ++i) {
    int64_t t = reverse ? steps - 1 - i : i;
    auto at = [&](const Slot& slot) {
      int64_t step = t + (slot.kind == kKnown ? known_first : slot.kind == kRoom ? room_first : 0);
      int64_t number = step * inner[slot.kind][slot.index] + slot.inner;
      return arrays[slot.kind][slot.index] + (number * rows + first) * slot.width;
    };
    for (size_t s = 0; s < slots.size(); ++s) {
      const Slot& slot = slots[s];
      Place& place = places[s];
      if (slot.kind == kState || slot.kind == kNext) {
        int64_t turn = (i + (slot.kind == kNext)) % 2;
        place.base = memory + state_of[slot.index] + turn * count * place.row;
      } else if (IsMoving(slot) && !IsCopied(slot)) {
        place.base = at(slot);
      } else if (IsCopied(slot) && !IsWritten(slot)) {
        CopyRows(at(slot), slot.width, place.base, place.row, count, slot.width);
      }
    }
    int64_t begin = 0;
    for (int64_t end : groups) {
      Execute(begin, end, places, count, terms);
      begin = end;
    }
    for (size_t s = 0; s < slots.size(); ++s)
      if (IsCopied(slots[s]) && IsWritten(slots[s]))
        CopyRows(places[s].base, places[s].row, at(slots[s]), slots[s].width, count, slots[s].width);
  }
  for (size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    if (slot.kind != kState) continue;
    int64_t row = places[s].row;
    CopyRows(memory + state_of[slot.index] + steps % 2 * count * row, row,
             lasts[slot.index] + first * slot.width, slot.width, count, slot.width);
  }
}

// A row alone reads matrices but once in a step, as well where they lie; several read panels again
// and again.
void Loop::CopyMatrices() {
  is_packed = rows >= kTileRows;
  int64_t total = 0;
  for (size_t i = 0; i < depths.size(); ++i)
    if (is_packed || turned[i]) total += PackedSize(depths[i], columns[i]);
  copies.resize(total);
  float* to = copies.data();
  for (size_t i = 0; i < depths.size(); ++i) {
    if (!is_packed && !turned[i]) continue;
    auto copy = is_packed ? (turned[i] ? PackTransposed : Pack) : Transpose;
    copy(arrays[kMatrix][i], depths[i], columns[i], to);
    arrays[kMatrix][i] = to;
    to += PackedSize(depths[i], columns[i]);
  }
}

void Loop::Execute(int64_t begin, int64_t end, const std::vector<Place>& places, int64_t count,
                   std::vector<Term>& terms) const {
  if (code[begin].code == kProduct) {
    terms.clear();
    for (int64_t i = begin; i < end; ++i) {
      int64_t rows_of = code[i].operands[0], matrix = slots[code[i].operands[1]].index;
      terms.push_back({places[rows_of].base, places[rows_of].row, arrays[kMatrix][matrix], slots[rows_of].width});
    }
    const Instruction& first = code[begin];
    const Place& out = places[first.out];
    Sum sum{terms.data(), end - begin, nullptr, 0, out.base, out.row, slots[first.out].width, is_packed};
    if (first.operands[2] >= 0) {
      sum.start = places[first.operands[2]].base;
      sum.start_stride = places[first.operands[2]].row;
    }
    PartOfSum(sum, 0, count, 0, sum.columns);
    return;
  }
  int64_t widest = kLanes;
  for (int64_t i = begin; i < end; ++i) widest = std::max(widest, Padded(slots[code[i].out]));
  int64_t chunk = std::max<int64_t>(1, kChunk / widest);
  for (int64_t r = 0; r < count; r += chunk) {
    int64_t rows = std::min(chunk, count - r);
    auto at = [&](int64_t slot) {
      if (slot < 0) return Place{nullptr, 0, 0};
      Place place = places[slot];
      if (slots[slot].kind != kLocal) place.base += r * place.row;
      return place;
    };
    for (int64_t i = begin; i < end; ++i) {
      const Instruction& op = code[i];
      Place out = at(op.out), a = at(op.operands[0]);
      int64_t width = slots[op.out].width, of_a = slots[op.operands[0]].width;
      if (op.code == kJoin) {
        Place b = at(op.operands[1]);
        CopyRows(a.base, a.row, out.base, out.row, rows, of_a);
        CopyRows(b.base, b.row, out.base + of_a, out.row, rows, width - of_a);
      } else if (op.code == kCut) {
        CopyRows(a.base + op.extra, a.row, out.base, out.row, rows, width);
      } else {
        Operands all{out, a, at(op.operands[1]), at(op.operands[2]), rows,
                     RoundUp(width, kLanes) / kLanes, op.extra};
        kOperations[op.code](all);
      }
    }
  }
}

// Arguments: the first steps in known arrays and in rooms; scalars; then vectors, matrices, inputs,
// known arrays, states and rooms, as many of each as `counts` says. Results: states, outputs, rooms.
ffi::Error RowScan(ffi::ThreadPool pool, Numbers offsets, Array scalars, ffi::RemainingArgs args,
                   ffi::RemainingRets results, Attribute slots, Attribute code, Attribute counts,
                   Attribute turned, int64_t rows, int64_t steps, int64_t work, bool reverse, int64_t threads) {
  Loop loop;
  loop.rows = rows;
  loop.steps = steps;
  loop.reverse = reverse;
  loop.scalars = scalars.typed_data();
  loop.known_first = offsets.typed_data()[0];
  loop.room_first = offsets.typed_data()[1];
  for (size_t i = 0; i + 4 <= slots.size(); i += 4)
    loop.slots.push_back({slots[i], slots[i + 1], slots[i + 2], slots[i + 3]});
  for (size_t i = 0; i + 6 <= code.size(); i += 6)
    loop.code.push_back(
        {code[i], code[i + 1], {code[i + 2], code[i + 3], code[i + 4]}, code[i + 5]});
  for (size_t i = 0; i < loop.code.size(); ++i) {
    bool is_last = i + 1 == loop.code.size();
    bool is_product = loop.code[i].code == kProduct;
    if (is_last || (is_product ? !loop.code[i].extra : loop.code[i + 1].code == kProduct))
      loop.groups.push_back(static_cast<int64_t>(i) + 1);
  }
  int64_t next = 0;
  // [steps, inner arrays, rows, width] or [inner arrays, width]: the sizes between.
  auto inner_arrays = [](ffi::Span<const int64_t> sizes) {
    int64_t product = 1;
    for (size_t i = 1; i + 2 < sizes.size(); ++i) product *= sizes[i];
    return product;
  };
  const Kind kinds[] = {kVector, kMatrix, kInput, kKnown, kState};
  for (int64_t k = 0; k < 5; ++k)
    for (int64_t i = 0; i < counts[k]; ++i) {
      auto array = args.get<Array>(next++);
      if (!array.has_value()) return array.error();
      loop.arrays[kinds[k]].push_back(array->typed_data());
      loop.inner[kinds[k]].push_back(inner_arrays(array->dimensions()));
      if (kinds[k] != kMatrix) continue;
      loop.turned.push_back(turned[i]);
      loop.depths.push_back(array->dimensions()[turned[i] ? 1 : 0]);
      loop.columns.push_back(array->dimensions()[turned[i] ? 0 : 1]);
    }
  loop.CopyMatrices();
  size_t states = loop.arrays[kState].size();
  for (size_t i = 0; i < results.size(); ++i) {
    auto array = results.get<Array>(i);
    if (!array.has_value()) return array.error();
    float* data = (*array)->typed_data();
    if (i < states) {
      loop.lasts.push_back(data);
      continue;
    }
    Kind kind = static_cast<int64_t>(i - states) < counts[5] ? kOutput : kRoom;
    loop.arrays[kind].push_back(data);
    loop.inner[kind].push_back(inner_arrays((*array)->dimensions()));
  }
  if (work * rows * steps < kSmallWork) threads = 1;
  int64_t share = std::min(kMostRows, RoundUp((rows + threads - 1) / threads, kTileRows));
  ForEachPiece(pool, threads, (rows + share - 1) / share, [&](int64_t piece) {
    loop.Run(piece * share, std::min(share, rows - piece * share));
  });
  return ffi::Error::Success();
}

// Results that nobody has written.
ffi::Error Memory(ffi::RemainingRets, int64_t) { return ffi::Error::Success(); }

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_memory, Memory,
                              ffi::Ffi::Bind().RemainingRets().Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_row_scan, RowScan,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Numbers>()
                                  .Arg<Array>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<Attribute>("slots")
                                  .Attr<Attribute>("code")
                                  .Attr<Attribute>("counts")
                                  .Attr<Attribute>("turned")
                                  .Attr<int64_t>("rows")
                                  .Attr<int64_t>("steps")
                                  .Attr<int64_t>("work")
                                  .Attr<bool>("reverse")
                                  .Attr<int64_t>("threads"));

}  // namespace jaxeff
