#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "flatquant/base/dtype.h"

namespace flatquant {

// A dense row-major tensor that somebody else owns (usually a mapped file).
// data may be unaligned for its type. Valid as long as its owner lives.
struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;

  uint64_t elements() const;
  uint64_t bytes() const { return elements() * DTypeSize(dtype); }

  // "[4096, 256]"
  std::string ShapeString() const;

  // A float32 copy; from F64, F32, F16 or BF16 only (a programmer error otherwise).
  std::vector<float> ToFloat() const;
  void ToFloat(float* out) const;
};

}  // namespace flatquant
