#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flatquant::compress {

// What a step of AdamW takes from its number t, counted from 1.
struct AdamWFactors {
  double schedule;   // multiplies all learning rates
  double mean;       // 1 / (1 - beta1^t)
  double deviation;  // 1 / sqrt(1 - beta2^t)

  static AdamWFactors At(int64_t t, double schedule);
};

constexpr double kAdamBeta1 = 0.9;
constexpr double kAdamBeta2 = 0.999;
constexpr double kAdamEpsilon = 1e-8;

// One step of AdamW (Loshchilov & Hutter, ICLR 2019) in place, with r = schedule rate:
//
//   m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
//   p = (1 - r decay) p - r mean m / (deviation sqrt(v) + epsilon)
//
// p, m, v, g, rate: float [n], contiguous, on one device. factors: float [3] there, an
// AdamWFactors in its order: a tensor, so that a step of a GPU can be replayed.
void AdamWStep(const at::Tensor& p, const at::Tensor& m, const at::Tensor& v, const at::Tensor& g,
               const at::Tensor& rate, const at::Tensor& factors, double decay);

}  // namespace flatquant::compress
