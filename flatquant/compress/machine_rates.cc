#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "flatquant/compress/estimate.h"
#include "flatquant/compress/ops/linear.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/run_plan.h"

namespace flatquant {
namespace {

using Clock = std::chrono::steady_clock;

// Long enough for threads to be awake and caches warm, short enough to be waited for.
constexpr double kSecondsPerRate = 0.3;
constexpr int64_t kMostTokens = 4096;
constexpr int64_t kMostWidth = 8192;
constexpr int64_t kDoubleOrder = 768;               // float64 factors of this size fill a core
constexpr int64_t kStreamBytes = int64_t{1} << 28;  // beyond every last-level cache

// The shortest time of a repeated call: what disturbs it only makes it longer.
double BestSeconds(const at::Device& device, const std::function<void()>& call) {
  const auto wait = [&device](const at::Tensor& result = {}) {
    if (!device.is_cpu()) at::zeros({1}, at::TensorOptions().device(device)).item<float>();
    static_cast<void>(result);
  };
  call();
  wait();
  double best = std::numeric_limits<double>::infinity();
  for (const Clock::time_point start = Clock::now();
       std::chrono::duration<double>(Clock::now() - start).count() < kSecondsPerRate;) {
    const Clock::time_point begin = Clock::now();
    call();
    wait();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return best;
}

double StreamRate(const at::Device& device) {
  if (!device.is_cpu()) {
    const at::Tensor from =
        at::zeros({kStreamBytes}, at::TensorOptions().dtype(at::kChar).device(device));
    at::Tensor to = at::empty_like(from);
    return 2.0 * kStreamBytes / BestSeconds(device, [&] { to.copy_(from); });
  }
  std::vector<char> from(kStreamBytes), to(kStreamBytes);
  constexpr int64_t kGrain = int64_t{1} << 20;
  return 2.0 * kStreamBytes / BestSeconds(device, [&] {
           compress::ParallelFor(kStreamBytes, kGrain, [&](int64_t begin, int64_t end) {
             std::memcpy(to.data() + begin, from.data() + begin, static_cast<size_t>(end - begin));
           });
         });
}

}  // namespace

MachineRates MeasureRates(const ModelConfig& config, const QuantizeOptions& options) {
  at::NoGradGuard no_grad;
  compress::SetOpThreads(options.threads);
  const at::Device device = compress::ParseDevice(options);
  const compress::Amp amp = compress::AmpOf(options, config, device);
  const auto kind = at::TensorOptions().device(device);
  const int64_t tokens = std::min(options.batch * options.seqlen, kMostTokens);
  const int64_t in = std::min(config.hidden, kMostWidth);
  const int64_t out = std::min(config.ffn, kMostWidth);
  const at::Tensor x = at::randn({tokens, in}, kind);
  const at::Tensor w = at::randn({out, in}, kind);
  MachineRates rates;
  rates.matmul_flops = 2.0 * static_cast<double>(tokens * in * out) /
                       BestSeconds(device, [&] { compress::LinearOp(x, w, {}, amp); });
  const at::Tensor a = at::randn({kDoubleOrder, kDoubleOrder}, kind.dtype(at::kDouble));
  rates.double_flops =
      2.0 * kDoubleOrder * kDoubleOrder * kDoubleOrder / BestSeconds(device, [&] { at::mm(a, a); });
  rates.streamed_bytes = StreamRate(device);
  return rates;
}

}  // namespace flatquant
