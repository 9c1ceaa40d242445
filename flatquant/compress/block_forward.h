#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/columns.h"
#include "flatquant/compress/ops/amp.h"
#include "flatquant/model/config.h"
#include "flatquant/model/network.h"

namespace flatquant::compress {

// Logits of the factors that shrink a range; undefined = a factor of 1.
struct ClipLogits {
  at::Tensor max;  // [1], or [rows, 1] for weights
  at::Tensor min;
};

// One decoder block as it is computed: the tensors of a PackedBlock, in floating
// point. The same forward pass serves the original block (no transforms, 16
// bits), training, the folded block of the self-test, and packed models.
struct BlockTensors {
  struct SiteTensors {
    at::Tensor left;    // [L, L] or undefined
    at::Tensor right;   // [R, R] or undefined
    ColumnMap columns;  // a flattened site: instead of matrices and clips
    int act_bits = 16;
    std::vector<ClipLogits> clips = {ClipLogits{}};  // one, or one per linear of the site
  };

  at::Tensor input_norm;
  at::Tensor post_attention_norm;
  at::Tensor q_norm;
  at::Tensor k_norm;
  std::array<at::Tensor, 7> weights;  // indexed by Linear; already quantized where wanted
  std::array<at::Tensor, 7> biases;
  std::array<SiteTensors, 4> sites;  // indexed by Site
  at::Tensor k_transform;            // [head_dim, head_dim] or undefined
  at::Tensor q_transform;
  int k_bits = 16;
  int v_bits = 16;
  ClipLogits k_clip;
  ClipLogits v_clip;

  SiteTensors& site(Site which) { return sites[static_cast<size_t>(which)]; }
  const SiteTensors& site(Site which) const { return sites[static_cast<size_t>(which)]; }
};

// The original block: nothing transformed, nothing quantized.
BlockTensors FullPrecision(const BlockWeights& weights);

// cos and sin of RoPE's angles, [tokens, head_dim / 2].
struct RopeTables {
  at::Tensor cos;
  at::Tensor sin;
};
RopeTables MakeRopeTables(const ModelConfig& config, int64_t tokens, at::ScalarType type,
                          at::Device device);

// Sees a site's activation [batch, tokens, width] before its online transform.
using SiteObserver = std::function<void(Site, const at::Tensor&)>;

// What the linears of a site multiply: x [batch, tokens, width] after the online
// transform and, below 16 bits, quantize-dequantize with `clip`, in `type`.
at::Tensor SiteInput(const BlockTensors::SiteTensors& site, const ClipLogits& clip,
                     const at::Tensor& x, at::ScalarType type);

// A block is two residual steps: x + attention(x), then x + mlp(x).
enum class BlockHalf { kAttention, kMlp };

// What enters a site before its online transform. x: what enters the site's half.
at::Tensor SiteActivation(const ModelConfig& config, const BlockTensors& block,
                          const RopeTables& rope, const at::Tensor& x, Site site, Amp amp,
                          const SiteObserver& observer = {});

// One step, [batch, tokens, hidden] -> the same shape.
at::Tensor HalfForward(const ModelConfig& config, const BlockTensors& block, const RopeTables& rope,
                       const at::Tensor& x, BlockHalf half, Amp amp,
                       const SiteObserver& observer = {});

// Both. x: [batch, tokens, hidden] -> the same shape. rope: tables of at least `tokens`
// rows. amp: what matrix products round their operands to.
at::Tensor BlockForward(const ModelConfig& config, const BlockTensors& block,
                        const RopeTables& rope, const at::Tensor& x, Amp amp,
                        const SiteObserver& observer = {});

}  // namespace flatquant::compress
