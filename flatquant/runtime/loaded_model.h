#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/tensor.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"
#include "flatquant/kernels/gemm_float/float_weights.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// A network as the forward pass reads it: every matrix in the layout of the
// kernel that multiplies it.

struct LoadedLinear {
  int64_t rows = 0;
  // Integers when the weights and their site's activations both have at most 8
  // bits, else floats (which may be integers in memory, see FloatWeights).
  std::variant<GemmIntWeights, FloatWeights> weights;
};

struct LoadedSite {
  KronTransform transform;
  int act_bits = 16;
  std::vector<KronClip> clips;  // one, or one per linear of the site
  // A constant step and more columns than channels, instead of transform and clips.
  std::optional<Flattening> flattening;

  // Elements per token that enter the site, and that its linears read.
  int64_t width() const { return flattening ? flattening->width : transform.width(); }
  int64_t columns() const { return flattening ? flattening->columns() : transform.width(); }
  uint64_t bytes() const { return transform.bytes() + (flattening ? flattening->bytes() : 0); }
};

// Transform of K or Q per head; width 0 where there is none.
struct LoadedCache {
  int k_bits = 16;
  int v_bits = 16;
  KronClip k_clip;
  KronClip v_clip;
  KronTransform k_transform;
  KronTransform q_transform;
  bool has_k_transform = false;
  bool has_q_transform = false;
};

struct LoadedBlock {
  AlignedBuffer<float> input_norm;
  AlignedBuffer<float> post_attention_norm;
  AlignedBuffer<float> q_norm;  // empty without qk_norm
  AlignedBuffer<float> k_norm;
  std::array<LoadedLinear, 7> linears;  // indexed by Linear
  std::array<LoadedSite, 4> sites;      // indexed by Site
  LoadedCache cache;

  const LoadedLinear& linear(Linear which) const { return linears[static_cast<size_t>(which)]; }
  const LoadedSite& site(Site which) const { return sites[static_cast<size_t>(which)]; }
};

struct LoadedModel {
  ModelConfig config;
  std::vector<LoadedBlock> blocks;
  PackedLinear embedding;  // [vocab, hidden], as in the file: only few rows are read
  AlignedBuffer<float> final_norm;
  LoadedSite head_site;  // what enters the output projection: no transform
  LoadedLinear lm_head;
  GemmFloatMath math = GemmFloatMath::kF32;  // of the float linears
  std::vector<double> rope_frequencies;      // [head_dim / 2]

  uint64_t bytes() const;
  // What every pass reads, whatever its tokens: all but an embedding table that is
  // not the output projection too.
  uint64_t bytes_per_pass() const;
  uint64_t block_bytes() const;
};

// math: how float linears multiply. The model's shapes must be consistent (a
// reader or PlainModel made it).
LoadedModel LoadModel(PackedModel model, GemmFloatMath math, ThreadPool& pool);

}  // namespace flatquant
