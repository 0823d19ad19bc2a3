// Arrays of XLA as functions take them.
#pragma once

#include <cstdint>

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

inline Epilogue EpilogueOf(const Array& factor, const Array& bias, const Array& skip,
                           int64_t activation) {
  return {IfAny(factor), IfAny(bias), IfAny(skip), static_cast<Activation>(activation)};
}

}  // namespace jaxeff
