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

// Of factors and biases [2, channels], and a skip; all of them may be absent.
inline Epilogue EpilogueOf(const Array& affine, const Array& skip, int64_t activation) {
  const float* factor = IfAny(affine);
  return {factor, factor ? factor + affine.element_count() / 2 : nullptr, IfAny(skip),
          static_cast<Activation>(activation)};
}

}  // namespace jaxeff
