#include "flatquant/compress/calibration.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"
#include "flatquant/compress/flat_adamw.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/step_replay.h"

namespace flatquant::compress {
namespace {

// The learning rate ends at this fraction of its start.
constexpr double kLastRate = 1e-3;

// Windows that loss_before and loss_after are measured on: enough for three
// digits, few enough to cost less than a step or two each.
constexpr int64_t kProbeWindows = 8;

double CosineRate(int64_t step, int64_t steps) {
  const double progress = static_cast<double>(step) / static_cast<double>(steps);
  return kLastRate + (1 - kLastRate) * 0.5 * (1 + std::cos(std::numbers::pi * progress));
}

// The root mean square that a block's output gradient is given where products are in float16;
// the optimizer undoes it. By itself it is 2 / (n rms(y - target)) with n elements, 1e-7 to
// 1e-4 for millions of them, and float16 is normal between 6e-5 and 65504.
//
// Of all that backward computes, weights' gradients are the largest: sums over the batch's T
// tokens of a gradient times an activation. A size of 2^10 / T bounds those of an error that is
// the same in all tokens by 2^10 |x|, which leaves a factor of 64 for |x| and for channels that
// carry most of the error. Downwards 8192 tokens, with 1/8, leave normal numbers of a 2000th of
// the mean, and some digits of a millionth.
double HalfGradientSize(int64_t tokens) {
  return std::min(1.0, 0x1p10 / static_cast<double>(tokens));
}

class BlockTrainer {
 public:
  BlockTrainer(const ModelConfig& config, const BlockWeights& weights, const Scheme& scheme,
               const TrainingOptions& options, const ResidualStream& stream,
               const BlockParameters& parameters)
      : config_(config),
        weights_(weights),
        scheme_(scheme),
        options_(options),
        stream_(stream),
        parameters_(parameters),
        inputs_(options.quantized_stream ? stream.quantized_inputs() : stream.inputs()) {}

  TrainingResult Run(const std::function<void()>& on_step) {
    TrainingResult result;
    result.loss_before = Probe();
    Train(on_step);
    result.loss_after = Probe();
    return result;
  }

  double SelectionLoss() const {
    const int64_t windows = std::min(kSelectionWindows, stream_.windows());
    return Loss((at::arange(windows, at::kLong) * stream_.windows()).floor_divide(windows));
  }

 private:
  at::Tensor Forward(const at::Tensor& x) const {
    const at::ScalarType weight_type = OperandType(options_.amp, at::kFloat);
    const BlockTensors block = Quantized(Fold(config_, weights_, parameters_, at::kFloat),
                                         parameters_, scheme_, weight_type);
    return BlockForward(config_, block, stream_.rope(), x, options_.amp);
  }

  // Loss of the first windows.
  double Probe() const {
    return Loss(at::arange(std::min(kProbeWindows, stream_.windows()), at::kLong));
  }

  // Mean squared error over the windows of these numbers.
  double Loss(const at::Tensor& numbers) const {
    at::NoGradGuard no_grad;
    const at::Tensor chosen = numbers.to(inputs_.device());
    const int64_t windows = numbers.numel();
    double sum = 0;
    for (int64_t begin = 0; begin < windows; begin += options_.batch) {
      const int64_t count = std::min(options_.batch, windows - begin);
      const at::Tensor part = chosen.narrow(0, begin, count);
      const at::Tensor x =
          at::empty({count, inputs_.size(1), inputs_.size(2)}, stream_.rope().cos.options());
      const at::Tensor target = at::empty_like(x);
      ResidualStream::Select(inputs_, part, x);
      ResidualStream::Select(stream_.outputs(), part, target);
      sum += (Forward(x) - target).square().mean().item<double>() * static_cast<double>(count);
    }
    const double loss = sum / static_cast<double>(windows);
    if (!std::isfinite(loss)) Diverged();
    return loss;
  }

  void Train(const std::function<void()>& on_step) {
    const int64_t steps = TrainingSteps(options_, stream_.windows());
    if (steps == 0) return;
    // The corrections are much larger than the rest: first, so that they are aligned.
    std::vector<FlatAdamW::Group> groups;
    for (FlatAdamW::Group& group :
         std::vector<FlatAdamW::Group>{{parameters_.CorrectionTensors(), options_.weight_lr},
                                       {parameters_.TransformTensors(), options_.lr},
                                       {parameters_.ClipTensors(), options_.clip_lr}}) {
      if (!group.tensors.empty()) groups.push_back(std::move(group));
    }
    if (groups.empty()) return;
    FlatAdamW optimizer(groups, steps, [steps](int64_t step) { return CosineRate(step, steps); });

    const at::TensorOptions floats = stream_.rope().cos.options();
    const at::IntArrayRef all = inputs_.sizes();
    const int64_t batch = std::min(options_.batch, all[0]);
    const at::Tensor x = at::empty({batch, all[1], all[2]}, floats);
    const at::Tensor target = at::empty_like(x);
    StepReplay step_all(floats.device(), [&] { Step(x, target, &optimizer); });

    int64_t step = 0;
    Rng rng(options_.seed);
    std::vector<int64_t> order(static_cast<size_t>(stream_.windows()));
    std::iota(order.begin(), order.end(), int64_t{0});
    for (int epoch = 0; epoch < options_.epochs; ++epoch) {
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.Below(i)]);
      // One transfer per epoch: the host would wait for the device in each.
      const at::Tensor chosen = at::tensor(order).to(inputs_.device());
      for (int64_t begin = 0; begin < all[0]; begin += batch) {
        const int64_t count = std::min(batch, all[0] - begin);
        const at::Tensor part = chosen.narrow(0, begin, count);
        const at::Tensor some = x.narrow(0, 0, count), its_target = target.narrow(0, 0, count);
        ResidualStream::Select(inputs_, part, some);
        ResidualStream::Select(stream_.outputs(), part, its_target);
        optimizer.Seek(step++);
        if (count == batch) {
          step_all();
        } else {
          Step(some, its_target, &optimizer);
        }
        if (on_step) on_step();
      }
    }
    if (!optimizer.SawOnlyFinite()) Diverged();
  }

  void Step(const at::Tensor& x, const at::Tensor& target, FlatAdamW* optimizer) const {
    const at::Tensor y = Forward(x);
    at::Tensor gradient, unit;
    {
      // d(MSE / stop_gradient(MSE)) / dy = 2 (y - target) / (n MSE), MSE = sum / n.
      at::NoGradGuard no_grad;
      gradient = y - target;
      const at::Tensor sum = gradient.square().sum().clamp_min(std::numeric_limits<float>::min());
      at::Tensor factor = 2.0 / sum;
      if (options_.amp == Amp::kF16) {
        const at::Tensor root_mean_square = (sum / static_cast<double>(y.numel())).sqrt();
        const at::Tensor sized = HalfGradientSize(y.numel() / y.size(-1)) / root_mean_square;
        unit = factor / sized;
        factor = sized;
      }
      gradient.mul_(factor);
    }
    optimizer->Step(torch::autograd::grad({y}, optimizer->parameters(), {gradient},
                                          /*retain_graph=*/false, /*create_graph=*/false,
                                          /*allow_unused=*/true),
                    unit);
  }

  [[noreturn]] void Diverged() const {
    const bool half = options_.amp == Amp::kF16;
    throw Error("calibration.diverged", "calibration",
                half ? "the loss of a block, or a gradient in float16, is not finite"
                     : "the loss of a block, or a gradient, is not finite",
                half ? "use --amp bf16, which has float's range" : "lower --lr, or use --amp f32");
  }

  const ModelConfig& config_;
  const BlockWeights& weights_;
  const Scheme& scheme_;
  const TrainingOptions& options_;
  const ResidualStream& stream_;
  const BlockParameters& parameters_;
  const at::Tensor& inputs_;  // [windows, tokens, hidden]
};

}  // namespace

TrainingOptions TrainingOptionsOf(const QuantizeOptions& options) {
  TrainingOptions training;
  training.epochs = options.epochs;
  training.batch = options.batch;
  training.lr = options.lr;
  training.clip_lr = options.clip_lr;
  training.weight_lr = options.weight_lr;
  training.quantized_stream = options.stream == QuantizeOptions::Stream::kQuantized;
  return training;
}

int64_t TrainingSteps(const TrainingOptions& options, int64_t windows) {
  return options.epochs * ((windows + options.batch - 1) / options.batch);
}

TrainingResult TrainBlock(const ModelConfig& config, const BlockWeights& weights,
                          const Scheme& scheme, const TrainingOptions& options,
                          const ResidualStream& stream, const BlockParameters& parameters,
                          const std::function<void()>& on_step) {
  return BlockTrainer(config, weights, scheme, options, stream, parameters).Run(on_step);
}

double SelectionLoss(const ModelConfig& config, const BlockWeights& weights, const Scheme& scheme,
                     const TrainingOptions& options, const ResidualStream& stream,
                     const BlockParameters& parameters) {
  return BlockTrainer(config, weights, scheme, options, stream, parameters).SelectionLoss();
}

}  // namespace flatquant::compress
