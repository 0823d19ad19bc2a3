// Arrays of XLA as functions take them.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "tiles.h"
#include "xla/ffi/api/ffi.h"

namespace jaxeff {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<ffi::Buffer<ffi::F32>>;

// An array of no elements is absent.
inline const float* IfAny(const Array& array) {
  return array.element_count() ? array.typed_data() : nullptr;
}

// A normalisation by known moments as factors and biases, or a bias alone, or nothing.
class Affine {
 public:
  Affine(const Array& scale, const Array& offset, const Array& mean, const Array& variance,
         float epsilon)
      : values_(2 * scale.element_count()), offset_(IfAny(offset)) {
    int64_t channels = scale.element_count();
    for (int64_t c = 0; c < channels; ++c) {
      values_[c] = scale.typed_data()[c] / std::sqrt(variance.typed_data()[c] + epsilon);
      values_[channels + c] = offset.typed_data()[c] - mean.typed_data()[c] * values_[c];
    }
  }
  const float* Factor() const { return values_.empty() ? nullptr : values_.data(); }
  const float* Bias() const {
    return values_.empty() ? offset_ : values_.data() + values_.size() / 2;
  }

 private:
  std::vector<float> values_;
  const float* offset_;
};

inline Epilogue EpilogueOf(const Affine& affine, const Array& skip, int64_t activation) {
  return {affine.Factor(), affine.Bias(), IfAny(skip), static_cast<Activation>(activation)};
}

}  // namespace jaxeff
