#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/tensor_view.h"

namespace flatquant {

// A TensorView that keeps its memory alive: a mapped file, or bytes of its own.
// Copies share the memory, which nobody changes once it is in a Tensor.
struct Tensor : TensorView {
  std::shared_ptr<const void> owner;

  // A view into memory that owner keeps.
  static Tensor Share(TensorView view, std::shared_ptr<const void> owner) {
    Tensor tensor;
    static_cast<TensorView&>(tensor) = std::move(view);
    tensor.owner = std::move(owner);
    return tensor;
  }

  // Takes over the elements; values.size() must match the shape.
  template <typename T>
  static Tensor Own(DType dtype, std::vector<int64_t> shape, std::vector<T> values) {
    auto memory = std::make_shared<const std::vector<T>>(std::move(values));
    TensorView view{dtype, std::move(shape), reinterpret_cast<const std::byte*>(memory->data())};
    FLATQUANT_CHECK(view.bytes() == memory->size() * sizeof(T));
    return Share(std::move(view), std::move(memory));
  }

  static Tensor Floats(std::vector<int64_t> shape, std::vector<float> values) {
    return Own(DType::kF32, std::move(shape), std::move(values));
  }

  bool defined() const { return data != nullptr; }
};

}  // namespace flatquant
