// A loop over time whose rows do not depend on each other: a thread takes some of the rows through
// all steps, so that what they need stays in its core's cache and no thread waits for another. Of few
// rows, threads share the columns of products, and do everything else each for itself.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "row_loop.h"
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
constexpr int64_t kSharedStep = 1 << 16;  // multiply-adds of a step whose columns are shared
constexpr int64_t kSharedWork = 1 << 21;  // and of all steps

// How threads share the columns of sums.
struct Share {
  int64_t member = 0;
  Team* team = nullptr;
  float* sums = nullptr;  // of two steps in turns: one may be read while the next is written

  // Where the columns of a member begin.
  int64_t Begin(int64_t of, int64_t columns) const {
    return team ? std::min(columns, RoundUp(columns * of / team->size(), 2 * kLanes)) : of * columns;
  }
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

// Rows [first, first + count) on one thread.
class Rows {
 public:
  Rows(const Loop& loop, int64_t first, int64_t count, const Share& share = {});

  // Runs all steps.
  void Run();

 private:
  const Loop& loop_;
  const int64_t first_, count_;
  const Share share_;
  std::vector<Place> places_;      // of the slots
  std::vector<int64_t> state_of_;  // where the two versions of a state begin in memory
  std::vector<Term> terms_, turned_terms_;
  float* memory_;
  int64_t meetings_ = 0;

  bool IsMoving(const Slot& slot) const {
    return slot.kind == kInput || slot.kind == kKnown || slot.kind == kOutput || slot.kind == kRoom;
  }
  bool IsWritten(const Slot& slot) const { return slot.kind == kOutput || slot.kind == kRoom; }
  // Whether rows are not whole vectors, or are written by another thread too, so that there is a copy.
  bool IsCopied(const Slot& slot) const {
    return IsMoving(slot) && (slot.width % kLanes || (share_.member && IsWritten(slot)));
  }
  float* At(const Slot& slot, int64_t t) const {
    int64_t step = t + (slot.kind == kKnown ? loop_.known_first : slot.kind == kRoom ? loop_.room_first : 0);
    int64_t number = step * loop_.inner[slot.kind][slot.index] + slot.inner;
    return loop_.arrays[slot.kind][slot.index] + (number * loop_.rows + first_) * slot.width;
  }

  void Begin(int64_t i, int64_t t);
  void Multiply(const Group& group, float* sums);
  void Gather(const Group& last, const float* sums);
  void Compute(const Group& group);
  void End(int64_t t);
};

Rows::Rows(const Loop& loop, int64_t first, int64_t count, const Share& share)
    : loop_(loop), first_(first), count_(count), share_(share), places_(loop.slots.size()),
      state_of_(loop.lasts.size()) {
  const auto& slots = loop.slots;
  std::vector<int64_t> offsets(slots.size());
  std::vector<int64_t> registers, locals;  // where each begins
  int64_t total = 0;
  auto take = [&](int64_t floats) {
    int64_t place = total;
    total += RoundUp(floats, 16);
    return place;
  };
  auto take_once = [&](std::vector<int64_t>& begins, int64_t index, int64_t floats) {
    if (static_cast<int64_t>(begins.size()) <= index) begins.resize(index + 1, -1);
    if (begins[index] < 0) begins[index] = take(floats);
    return begins[index];
  };
  for (size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    int64_t row = loop.Padded(slot);
    places_[s] = {nullptr, row, kLanes};
    if (slot.kind == kLocal) {
      offsets[s] = take_once(locals, slot.index, std::max(row, kChunk));
    } else if (slot.kind == kRegister) {
      offsets[s] = take_once(registers, slot.index, count * row);
    } else if (slot.kind == kLiteral || slot.kind == kScalar) {
      offsets[s] = take(kLanes);
      places_[s] = {nullptr, 0, 0};
    } else if (slot.kind == kVector) {
      offsets[s] = take(row);
      places_[s].row = 0;
    } else if (slot.kind == kState) {
      offsets[s] = state_of_[slot.index] = take(2 * count * row);
    } else if (IsCopied(slot)) {
      offsets[s] = take(count * row);
    } else if (IsMoving(slot)) {
      places_[s].row = slot.width;
    }
  }
  memory_ = Workspace(total);
  for (size_t s = 0; s < slots.size(); ++s) {
    const Slot& slot = slots[s];
    float* base = memory_ + offsets[s];
    if (slot.kind != kState && slot.kind != kNext && (!IsMoving(slot) || IsCopied(slot))) places_[s].base = base;
    if (slot.kind == kLiteral || slot.kind == kScalar) {
      float value;
      int32_t bits = static_cast<int32_t>(slot.index);
      std::memcpy(&value, &bits, 4);
      Store(base, Fill(slot.kind == kLiteral ? value : loop.scalars[slot.index]));
    }
    if (slot.kind == kVector)
      std::memcpy(base, loop.arrays[kVector][slot.index] + slot.inner * slot.width, 4 * slot.width);
    if (slot.kind == kState)
      CopyRows(loop.arrays[kState][slot.index] + first * slot.width, slot.width, base, places_[s].row, count,
               slot.width);
  }
}

void Rows::Run() {
  for (int64_t i = 0; i < loop_.steps; ++i) {
    int64_t t = loop_.reverse ? loop_.steps - 1 - i : i;
    float* sums = share_.team ? share_.sums + i % 2 * loop_.sums : nullptr;
    Begin(i, t);
    for (const Group& group : loop_.groups) {
      if (!loop_.IsProduct(group)) {
        Compute(group);
        continue;
      }
      Multiply(group, sums);
      if (sums && group.ends_run) {
        share_.team->Meet(&meetings_);
        Gather(group, sums);
      }
    }
    if (!share_.member) End(t);
  }
  for (size_t s = 0; s < places_.size() && !share_.member; ++s) {
    const Slot& slot = loop_.slots[s];
    if (slot.kind != kState) continue;
    int64_t row = places_[s].row;
    CopyRows(memory_ + state_of_[slot.index] + loop_.steps % 2 * count_ * row, row,
             loop_.lasts[slot.index] + first_ * slot.width, slot.width, count_, slot.width);
  }
}

// Finds the arrays of step i, at time t.
void Rows::Begin(int64_t i, int64_t t) {
  for (size_t s = 0; s < places_.size(); ++s) {
    const Slot& slot = loop_.slots[s];
    Place& place = places_[s];
    if (slot.kind == kState || slot.kind == kNext) {
      int64_t turn = (i + (slot.kind == kNext)) % 2;
      place.base = memory_ + state_of_[slot.index] + turn * count_ * place.row;
    } else if (IsMoving(slot) && !IsCopied(slot)) {
      place.base = At(slot, t);
    } else if (IsCopied(slot) && !IsWritten(slot)) {
      CopyRows(At(slot, t), slot.width, place.base, place.row, count_, slot.width);
    }
  }
}

void Rows::End(int64_t t) {
  for (size_t s = 0; s < places_.size(); ++s) {
    const Slot& slot = loop_.slots[s];
    if (IsCopied(slot) && IsWritten(slot))
      CopyRows(places_[s].base, places_[s].row, At(slot, t), slot.width, count_, slot.width);
  }
}

// Computes a sum of products, or this member's columns of one.
void Rows::Multiply(const Group& group, float* sums) {
  const Instruction& first = loop_.code[group.begin];
  terms_.clear();
  turned_terms_.clear();
  for (int64_t i = group.begin; i < group.end; ++i) {
    int64_t rows = loop_.code[i].operands[0], matrix = loop_.slots[loop_.code[i].operands[1]].index;
    auto& terms = loop_.turned[matrix] ? turned_terms_ : terms_;
    const float* kernel = loop_.arrays[kMatrix][matrix];
    terms.push_back({places_[rows].base, places_[rows].row, kernel, loop_.slots[rows].width});
  }
  const Place& out = places_[first.out];
  int64_t columns = loop_.slots[first.out].width;
  int64_t begin = share_.Begin(share_.member, columns);
  int64_t end = share_.Begin(share_.member + 1, columns);
  Sum sum{nullptr, 0, nullptr, 0, out.base, out.row, columns};
  if (sums) sum.y = sums + group.place, sum.y_stride = loop_.Padded(loop_.slots[first.out]);
  if (first.operands[2] >= 0) {
    sum.start = places_[first.operands[2]].base;
    sum.start_stride = places_[first.operands[2]].row;
  }
  if (!terms_.empty()) {
    sum.terms = terms_.data(), sum.count = terms_.size();
    PartOfSum(sum, 0, count_, begin, end);
    sum.start = sum.y, sum.start_stride = sum.y_stride;
  }
  if (turned_terms_.empty()) return;
  sum.terms = turned_terms_.data(), sum.count = turned_terms_.size();
  PartOfTurnedRow(sum, begin, end);
}

// Copies the sums of a run, of which all members have computed their columns, to where they go.
void Rows::Gather(const Group& last, const float* sums) {
  const Group* group = &last;
  do {
    const Instruction& op = loop_.code[group->begin];
    const Slot& slot = loop_.slots[op.out];
    CopyRows(sums + group->place, loop_.Padded(slot), places_[op.out].base, places_[op.out].row, count_, slot.width);
  } while (group != loop_.groups.data() && loop_.IsProduct(*--group) && !group->ends_run);
}

void Rows::Compute(const Group& group) {
  int64_t widest = kLanes;
  for (int64_t i = group.begin; i < group.end; ++i)
    widest = std::max(widest, loop_.Padded(loop_.slots[loop_.code[i].out]));
  int64_t chunk = std::max<int64_t>(1, kChunk / widest);
  for (int64_t r = 0; r < count_; r += chunk) {
    int64_t rows = std::min(chunk, count_ - r);
    auto at = [&](int64_t slot) {
      if (slot < 0) return Place{nullptr, 0, 0};
      Place place = places_[slot];
      if (loop_.slots[slot].kind != kLocal) place.base += r * place.row;
      return place;
    };
    for (int64_t i = group.begin; i < group.end; ++i) {
      const Instruction& op = loop_.code[i];
      Place out = at(op.out), a = at(op.operands[0]);
      int64_t width = loop_.slots[op.out].width, of_a = loop_.slots[op.operands[0]].width;
      if (op.code == kJoin) {
        Place b = at(op.operands[1]);
        CopyRows(a.base, a.row, out.base, out.row, rows, of_a);
        CopyRows(b.base, b.row, out.base + of_a, out.row, rows, width - of_a);
      } else if (op.code == kCut) {
        CopyRows(a.base + op.extra, a.row, out.base, out.row, rows, width);
      } else {
        Operands all{out, a, at(op.operands[1]), at(op.operands[2]), rows, RoundUp(width, kLanes) / kLanes, op.extra};
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
  loop.MakeGroups();
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
    }
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
  bool is_shared = rows <= share && work * rows >= kSharedStep && work * rows * steps >= kSharedWork;
  if (threads > 1 && is_shared) {
    std::vector<float> sums(2 * loop.sums);
    Team::Run(pool, threads, [&](int64_t member, Team& team) {
      Rows(loop, 0, rows, Share{member, team.size() > 1 ? &team : nullptr, sums.data()}).Run();
    });
  } else {
    ForEachPiece(pool, threads, (rows + share - 1) / share, [&](int64_t piece) {
      Rows(loop, piece * share, std::min(share, rows - piece * share)).Run();
    });
  }
  return ffi::Error::Success();
}

// The transpose of a matrix [columns, depth].
ffi::Error Transposed(ffi::ThreadPool pool, Array matrix, ffi::Result<Array> result, int64_t threads) {
  int64_t columns = matrix.dimensions()[0], depth = matrix.dimensions()[1];
  constexpr int64_t kPieceRows = 4 * kLanes;
  ForEachPiece(pool, threads, (depth + kPieceRows - 1) / kPieceRows, [&](int64_t piece) {
    int64_t first = piece * kPieceRows, last = std::min(depth, first + kPieceRows);
    Transpose(matrix.typed_data(), depth, columns, first, last, result->typed_data());
  });
  return ffi::Error::Success();
}

// Results that nobody has written.
ffi::Error Memory(ffi::RemainingArgs, ffi::RemainingRets, int64_t) {
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    jaxeff_memory, Memory,
    ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attr<int64_t>("threads"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxeff_transposed, Transposed,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("threads"));

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
