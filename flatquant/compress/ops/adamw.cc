#include "flatquant/compress/ops/adamw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {

AdamWFactors AdamWFactors::At(int64_t t, double schedule) {
  const double steps = static_cast<double>(t);
  return {schedule, 1 / (1 - std::pow(kAdamBeta1, steps)),
          1 / std::sqrt(1 - std::pow(kAdamBeta2, steps))};
}

void AdamWStep(const at::Tensor& p, const at::Tensor& m, const at::Tensor& v, const at::Tensor& g,
               const at::Tensor& rate, const at::Tensor& factors, double decay) {
  at::NoGradGuard no_grad;
  for (const at::Tensor* tensor : {&p, &m, &v, &g, &rate}) {
    FLATQUANT_CHECK(tensor->dim() == 1 && tensor->numel() == p.numel() && tensor->is_contiguous());
  }
  if (!IsCpuFloat(p) || !IsCpuFloat(g)) {
    return composite::AdamWStep(p, m, v, g, rate, factors, decay);
  }
  const float* now = factors.data_ptr<float>();
  const float schedule = now[0], mean = now[1], deviation = now[2];
  const auto beta1 = static_cast<float>(kAdamBeta1), beta2 = static_cast<float>(kAdamBeta2);
  const auto epsilon = static_cast<float>(kAdamEpsilon), shrink = static_cast<float>(decay);
  float *to = p.data_ptr<float>(), *first = m.data_ptr<float>(), *second = v.data_ptr<float>();
  const float *gradient = g.data_ptr<float>(), *rates = rate.data_ptr<float>();
  ParallelFor(p.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
      const float r = schedule * rates[i];
      first[i] = beta1 * first[i] + (1 - beta1) * gradient[i];
      second[i] = beta2 * second[i] + (1 - beta2) * gradient[i] * gradient[i];
      to[i] = (1 - r * shrink) * to[i] -
              r * mean * first[i] / (deviation * std::sqrt(second[i]) + epsilon);
    }
  });
}

}  // namespace flatquant::compress
