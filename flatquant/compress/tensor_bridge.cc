#include "flatquant/compress/tensor_bridge.h"

#include <ATen/ATen.h>

#include <cstring>
#include <memory>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant::compress {

at::ScalarType ScalarTypeOf(DType type) {
  switch (type) {
    case DType::kF64:
      return at::kDouble;
    case DType::kF32:
      return at::kFloat;
    case DType::kF16:
      return at::kHalf;
    case DType::kBF16:
      return at::kBFloat16;
    case DType::kI64:
      return at::kLong;
    case DType::kI32:
      return at::kInt;
    case DType::kI16:
      return at::kShort;
    case DType::kI8:
      return at::kChar;
    case DType::kU8:
      return at::kByte;
    case DType::kBool:
      return at::kBool;
  }
  FLATQUANT_CHECK(false);
  return at::kFloat;
}

DType DTypeOf(at::ScalarType type) {
  for (const DType candidate : {DType::kF64, DType::kF32, DType::kF16, DType::kBF16, DType::kI64,
                                DType::kI32, DType::kI16, DType::kI8, DType::kU8, DType::kBool}) {
    if (ScalarTypeOf(candidate) == type) return candidate;
  }
  FLATQUANT_CHECK(false);
  return DType::kF32;
}

at::Tensor ToTorch(const Tensor& tensor, at::Device device) {
  if (!tensor.defined()) return {};
  at::Tensor result = at::empty(tensor.shape, ScalarTypeOf(tensor.dtype));
  std::memcpy(result.data_ptr(), tensor.data, tensor.bytes());
  return result.to(device);
}

at::Tensor ToTorch(const Tensor& tensor, at::ScalarType type, at::Device device) {
  const at::Tensor result = ToTorch(tensor, device);
  return result.defined() ? result.to(type) : result;
}

Tensor FromTorch(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  // The LibTorch tensor itself is the owner of the bytes.
  auto owner =
      std::make_shared<const at::Tensor>(tensor.detach().to(at::kCPU).contiguous().clone());
  TensorView view{DTypeOf(owner->scalar_type()),
                  {owner->sizes().begin(), owner->sizes().end()},
                  static_cast<const std::byte*>(owner->data_ptr())};
  return Tensor::Share(std::move(view), owner);
}

}  // namespace flatquant::compress
