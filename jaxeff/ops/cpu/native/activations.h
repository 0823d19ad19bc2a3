// Activations of vectors; they have the numbers that native/convolution.py gives their names.
#pragma once

#include <cstdint>

#include "vector_math.h"
#include "vectors.h"

namespace jaxeff {

enum Activation : int64_t { kIdentity, kRelu, kRelu6, kSwish, kHardSwish };

inline Vector Activated(Activation kind, const Vector& x) {
  switch (kind) {
    case kRelu: return x < 0 ? Vector{} : x;
    case kRelu6: return Clamp(x, 0.0f, 6.0f);
    case kSwish: return x / (1.0f + Exp(-x));
    case kHardSwish: return x * Clamp(x + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    default: return x;
  }
}

}  // namespace jaxeff
