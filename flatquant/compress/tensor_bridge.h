#pragma once

#include <ATen/core/Tensor.h>

#include "flatquant/base/tensor.h"

// Between the project's tensors (bytes, possibly mapped) and LibTorch's.
namespace flatquant::compress {

// The element type of a LibTorch tensor that holds a DType, and back.
at::ScalarType ScalarTypeOf(DType type);
DType DTypeOf(at::ScalarType type);

// A copy on `device` in the tensor's own element type; undefined stays undefined.
at::Tensor ToTorch(const Tensor& tensor, at::Device device);

// The same, converted to `type`.
at::Tensor ToTorch(const Tensor& tensor, at::ScalarType type, at::Device device);

// A copy in the LibTorch tensor's own element type; undefined stays undefined.
Tensor FromTorch(const at::Tensor& tensor);

}  // namespace flatquant::compress
