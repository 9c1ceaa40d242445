#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/rng.h"

// What the tests of this folder share.
namespace flatquant::compress {

constexpr double kFloatEpsilon = 0x1p-24;  // half a unit in the last place, relative

// Standard normal values, float.
inline at::Tensor RandomNormal(at::IntArrayRef sizes, uint64_t seed) {
  const at::Tensor t = at::empty(sizes, at::kFloat);
  Rng rng(seed);
  float* values = t.data_ptr<float>();
  for (int64_t i = 0; i < t.numel(); ++i) values[i] = static_cast<float>(rng.Normal());
  return t;
}

// A leaf that collects a gradient, in the given dtype.
inline at::Tensor Leaf(const at::Tensor& t, at::ScalarType dtype = at::kFloat) {
  return t.detach().to(dtype).clone().set_requires_grad(true);
}

// d(sum of outputs_i * weights_i) / d(inputs).
inline std::vector<at::Tensor> Gradients(const std::vector<at::Tensor>& outputs,
                                         const std::vector<at::Tensor>& inputs,
                                         const std::vector<at::Tensor>& weights) {
  return torch::autograd::grad(outputs, inputs, weights, /*retain_graph=*/false,
                               /*create_graph=*/false, /*allow_unused=*/false);
}

// |actual - expected| <= tolerance everywhere; reports the worst cell.
inline void ExpectClose(const at::Tensor& actual, const at::Tensor& expected, double tolerance,
                        const std::string& what) {
  ASSERT_TRUE(actual.defined() && expected.defined()) << what;
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const at::Tensor error =
      (actual.detach().to(at::kDouble) - expected.detach().to(at::kDouble)).abs().flatten();
  const int64_t worst = error.argmax().item<int64_t>();
  EXPECT_LE(error[worst].item<double>(), tolerance)  // false for NaN
      << what << ": cell " << worst << " is " << actual.flatten()[worst].item<double>()
      << ", expected " << expected.flatten()[worst].item<double>();
}

inline double MaxAbs(const at::Tensor& t) { return t.detach().abs().max().item<double>(); }

}  // namespace flatquant::compress
