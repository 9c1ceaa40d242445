#include "flatquant/compress/estimate.h"

#include <algorithm>

#include "flatquant/compress/calibration.h"
#include "flatquant/compress/run_plan.h"
#include "flatquant/compress/transform.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

// Elementwise work of a forward pass, in reads and writes of each site's activation:
// norm or activation function, transform, quantization, and the conversion for the
// matrix product, two each. A backward pass has the same once more, and its gradients.
constexpr double kPassesForward = 8;
constexpr double kPassesStep = 3 * kPassesForward;

// The same for a weight in one step: clipping, rounding and conversion with their
// gradients, and reading it in three matrix products.
constexpr double kWeightPassesStep = 12;
// Corrections: the gradient, AdamW's two moments and the value, read and written.
constexpr double kCorrectionPasses = 8;

constexpr double kFloat = 4;               // bytes
constexpr double kDouble = 8;              // bytes
constexpr int64_t kProbeWindows = 8;       // of TrainBlock, before and after
constexpr uint64_t kProgramBytes = 400e6;  // LibTorch and oneDNN with their code and buffers

struct Counts {
  double weights = 0;          // of a block's linears
  double rows = 0;             // of all linears
  double site_widths = 0;      // sum over sites
  double output_widths = 0;    // sum over linears' rows, what they produce per token
  double transform_flops = 0;  // per token, online transforms
  double fold_flops = 0;       // of folding all weights once
  double evaluate_flops = 0;   // of evaluating all learned matrices once
};

Counts Count(const ModelConfig& config) {
  Counts counts;
  for (const Linear which : kLinears) {
    const LinearShape shape = ShapeOf(config, which);
    const auto weights = static_cast<double>(shape.rows * shape.cols);
    const compress::KronShape kron = compress::KronFactors(shape.cols);
    counts.weights += weights;
    counts.rows += static_cast<double>(shape.rows);
    counts.fold_flops += 2 * weights * static_cast<double>(kron.left + kron.right);
  }
  counts.output_widths = counts.rows;
  for (const Site site : kSites) {
    const auto width = static_cast<double>(SiteWidth(config, site));
    const compress::KronShape kron = compress::KronFactors(SiteWidth(config, site));
    counts.site_widths += width;
    counts.transform_flops += 2 * width * static_cast<double>(kron.left + kron.right);
    for (const int64_t n : {kron.left, kron.right}) {
      const auto order = static_cast<double>(n);
      // Two Cayley maps, an LU solve each, and two products.
      counts.evaluate_flops += 10 * order * order * order;
    }
  }
  return counts;
}

uint64_t LinearBytes(const ModelConfig& config, Linear which, int bits, int64_t group_size) {
  const LinearShape shape = ShapeOf(config, which);
  const int64_t scales = 4 * GroupCount(shape.cols, group_size);
  const int64_t row = bits == 16 ? 2 * shape.cols : PackedRowBytes(bits, shape.cols) + scales;
  const int64_t bias = HasBias(config, which) ? 4 * shape.rows : 0;
  return static_cast<uint64_t>(shape.rows * row + bias);
}

// A block as it is stored: norms, linears, and the matrices that FlatQuant adds.
uint64_t BlockBytes(const ModelConfig& config, int bits, int64_t group_size) {
  uint64_t bytes = static_cast<uint64_t>(2 * config.hidden) * 4;
  for (const Linear which : kLinears) bytes += LinearBytes(config, which, bits, group_size);
  if (bits == 16) return bytes;
  int64_t elements = config.heads * config.heads + 2 * config.head_dim * config.head_dim;
  for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
    const compress::KronShape kron = compress::KronFactors(SiteWidth(config, site));
    elements += kron.left * kron.left + kron.right * kron.right;
  }
  return bytes + static_cast<uint64_t>(elements) * 4;
}

}  // namespace

WorkEstimate EstimateWork(const ModelConfig& config, const QuantizeOptions& options,
                          int lm_head_bits) {
  const auto method = compress::FindMethod(options);
  const bool calibrates = compress::UsesCalibration(*method, options);
  const bool in_order =
      calibrates && (options.stream == QuantizeOptions::Stream::kQuantized || options.UsesGptq());
  const Counts counts = Count(config);
  const auto hidden = static_cast<double>(config.hidden);
  const auto seqlen = static_cast<double>(options.seqlen);
  const double batch_tokens = static_cast<double>(options.batch) * seqlen;
  const double all_tokens = static_cast<double>(options.nsamples) * seqlen;

  // Of one token: linears, the causal half of scores and of their sum over V, transforms.
  const double token_flops = 2 * counts.weights +
                             2 * seqlen * static_cast<double>(config.q_width()) +
                             counts.transform_flops;
  const double token_bytes = kFloat * (counts.site_widths + counts.output_widths + 4 * hidden);

  WorkEstimate work;
  work.blocks = options.blocks > 0 ? std::min(options.blocks, config.layers) : config.layers;
  BlockWork& block = work.block;
  // Folding in float64 for the self-test and for packing.
  block.double_flops = 2 * counts.fold_flops + 2 * counts.evaluate_flops;
  block.streamed_bytes = 6 * kDouble * counts.weights;
  double steps = 0;
  if (calibrates) {
    const auto forward = [&](double tokens) {
      block.matmul_flops += tokens * token_flops;
      block.streamed_bytes += tokens * token_bytes * kPassesForward;
    };
    forward(all_tokens);  // what enters and leaves the block
    const bool trains = !options.transforms || options.LearnsWeights();
    if (trains) steps = static_cast<double>(method->StepsPerBlock(options, options.nsamples));
    if (steps == 0 && options.LearnsWeights()) {
      steps = static_cast<double>(
          compress::TrainingSteps(compress::TrainingOptionsOf(options), options.nsamples));
    }
    if (steps > 0) {
      const auto forward_some = [&](double times, int64_t windows) {
        forward(times * std::min(static_cast<double>(windows) * seqlen, all_tokens));
      };
      const double starts = options.restarts;
      forward_some(2 * starts, kProbeWindows);
      if (options.restarts > 1) forward_some(starts, compress::kSelectionWindows);
      block.matmul_flops +=
          steps * 3 * (batch_tokens * token_flops + counts.fold_flops + counts.evaluate_flops);
      const double weight_passes =
          kWeightPassesStep + (options.LearnsWeights() ? kCorrectionPasses : 0);
      block.streamed_bytes += steps * (batch_tokens * token_bytes * kPassesStep +
                                       kFloat * counts.weights * weight_passes);
    }
    if (in_order) forward(all_tokens);
    if (options.UsesGptq()) {
      forward(all_tokens);  // each half of the block once more, for its second site
      for (const Site site : kSites) {
        const auto width = static_cast<double>(SiteWidth(config, site));
        block.matmul_flops += all_tokens * width * width;  // a triangle of the Hessian
        block.double_flops += 2 * width * width * width;   // its factor and inverse
        for (const Linear which : LinearsOf(site)) {
          block.double_flops += static_cast<double>(ShapeOf(config, which).rows) * width * width;
        }
      }
    }
  }

  const double stream = calibrates ? kFloat * all_tokens * hidden : 0;
  work.stream_bytes = static_cast<uint64_t>((in_order ? 3 : 2) * stream);
  // In training: original, folded, its gradient, rounded in float32; corrections, their
  // gradients and moments. In packing: original, folded in float64, and codes.
  double weight_copies = steps > 0 ? 4 * kFloat : kFloat + kDouble + 2 * kFloat;
  if (options.LearnsWeights()) weight_copies += 4 * kFloat;
  // The best start's corrections wait while another start is trained.
  if (options.LearnsWeights() && options.restarts > 1) weight_copies += kFloat;
  const double activations =
      steps > 0 ? 3 * batch_tokens * token_bytes : batch_tokens * token_bytes;
  work.memory_bytes = kProgramBytes + work.stream_bytes +
                      static_cast<uint64_t>(weight_copies * counts.weights + activations);

  const int bits = options.scheme.weight_bits;
  const auto quantized = static_cast<uint64_t>(work.blocks);
  const auto kept = static_cast<uint64_t>(config.layers - work.blocks);
  const uint64_t block_bytes = BlockBytes(config, bits, options.group_size);
  work.job_disk_bytes =
      quantized * block_bytes + (in_order ? static_cast<uint64_t>(2 * stream) : 0);
  const auto table = [&](int of_bits) {
    const int64_t row =
        of_bits == 16 ? 2 * config.hidden : PackedRowBytes(of_bits, config.hidden) + 4;
    return static_cast<uint64_t>(config.vocab * row);
  };
  work.output_disk_bytes = quantized * block_bytes + kept * BlockBytes(config, 16, 0) +
                           table(lm_head_bits) + (config.tied_embeddings ? 0 : table(16));
  return work;
}

TimeEstimate EstimateTime(const WorkEstimate& work, const MachineRates& rates) {
  const BlockWork& block = work.block;
  const double seconds = block.matmul_flops / rates.matmul_flops +
                         block.double_flops / rates.double_flops +
                         block.streamed_bytes / rates.streamed_bytes;
  const auto bytes = static_cast<double>(work.job_disk_bytes + work.output_disk_bytes);
  return {static_cast<double>(work.blocks) * seconds, bytes / kAssumedDiskRate};
}

}  // namespace flatquant
