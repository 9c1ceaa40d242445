#include "flatquant/base/tensor_view.h"

#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"

namespace flatquant {

uint64_t TensorView::elements() const {
  uint64_t count = 1;
  for (int64_t dimension : shape) count *= static_cast<uint64_t>(dimension);
  return count;
}

std::string TensorView::ShapeString() const {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

std::vector<float> TensorView::ToFloat() const {
  std::vector<float> values(elements());
  ToFloat(values.data());
  return values;
}

void TensorView::ToFloat(float* out) const {
  const size_t n = elements();
  if (n == 0) return;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, data, n * sizeof(float));
      return;
    case DType::kBF16:
      BF16ToFloat(reinterpret_cast<const uint16_t*>(data), out, n);
      return;
    case DType::kF16:
      F16ToFloat(reinterpret_cast<const uint16_t*>(data), out, n);
      return;
    case DType::kF64:
      for (size_t i = 0; i < n; ++i) {
        double value;
        std::memcpy(&value, data + i * sizeof(double), sizeof(double));
        out[i] = static_cast<float>(value);
      }
      return;
    default:
      FLATQUANT_CHECK(IsFloat(dtype));
  }
}

}  // namespace flatquant
