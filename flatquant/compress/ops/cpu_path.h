#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstdint>

// What the fused CPU operations share.
namespace flatquant::compress {

// Undefined tensors count: they stand for inputs that are left out.
inline bool IsCpuFloat(const at::Tensor& t) {
  return !t.defined() || (t.is_cpu() && t.scalar_type() == at::kFloat);
}

// Autograd functions take an input that may be left out as an optional: LibTorch's
// own type in version 1, the standard library's in version 2.
using OptionalTensor = torch::autograd::optional_variable_list::value_type;

inline OptionalTensor ToOptional(const at::Tensor& t) {
  return t.defined() ? OptionalTensor(t) : OptionalTensor();
}

// Elements that a thread should at least get of an elementwise loop: some 10 us
// of work, against about 1 us to wake it.
constexpr int64_t kElementGrain = 1 << 14;

// The same in rows of so many elements.
inline int64_t RowGrain(int64_t columns) { return std::max<int64_t>(1, kElementGrain / columns); }

}  // namespace flatquant::compress
