#include "flatquant/runtime/block_forward.h"

#include <cmath>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/rope/rope.h"
#include "flatquant/kernels/swiglu/swiglu.h"

namespace flatquant {
namespace {

AlignedBuffer<float> Floats(int64_t tokens, int64_t width) {
  return AlignedBuffer<float>(static_cast<size_t>(tokens * width));
}

void AddTo(float* stream, const float* update, int64_t n, ThreadPool& pool) {
  pool.ParallelFor(static_cast<size_t>(n), 32768, [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) stream[i] += update[i];
  });
}

// What one block's steps share.
struct BlockPass {
  const LoadedModel& model;
  const LoadedBlock& block;
  int64_t first_position;
  int64_t tokens;
  Workspace& work;
  ThreadPool& pool;

  // Per-head norm (Qwen3), then rotation, then the cache's transform; the result
  // is in x or, when there is a transform, in work.mixed.
  const float* PrepareHeads(float* x, int64_t heads, const AlignedBuffer<float>& norm,
                            const KronTransform* transform) {
    const int64_t head_dim = model.config.head_dim;
    if (norm.size() > 0) {
      RmsNorm({x, norm.data(), model.config.rms_eps, tokens * heads, head_dim, x}, pool);
    }
    Rope({x, tokens, heads, head_dim, work.cos.data(), work.sin.data()}, pool);
    if (transform == nullptr) return x;
    KronQuantizeArgs args;
    args.x = x;
    args.tokens = tokens * heads;
    args.transform = transform;
    args.y = work.mixed.data();
    KronQuantize(args, pool);
    return work.mixed.data();
  }

  void Store(const float* x, KronClip clip, const KvPlane& plane) {
    QuantizeKv({x, tokens, first_position, clip.max, clip.min, plane}, pool);
  }

  // work.stream += attention(norm(work.stream))
  void AttentionHalf(const KvPlane& k_plane, const KvPlane& v_plane) {
    const ModelConfig& config = model.config;
    const LoadedCache& cache = block.cache;
    RmsNorm({work.stream.data(), block.input_norm.data(), config.rms_eps, tokens, config.hidden,
             work.normed.data()},
            pool);
    const SiteOutput in =
        ApplySite(block.site(Site::kAttnIn), work.normed.data(), tokens, work.site, pool);
    ApplyLinear(block.linear(Linear::kQ), in, 0, work.q.data(), pool);
    ApplyLinear(block.linear(Linear::kK), in, 1, work.k.data(), pool);
    ApplyLinear(block.linear(Linear::kV), in, 2, work.v.data(), pool);
    const float* k = PrepareHeads(work.k.data(), config.kv_heads, block.k_norm,
                                  cache.has_k_transform ? &cache.k_transform : nullptr);
    Store(k, cache.k_clip, k_plane);
    Store(work.v.data(), cache.v_clip, v_plane);
    const float* q = PrepareHeads(work.q.data(), config.heads, block.q_norm,
                                  cache.has_q_transform ? &cache.q_transform : nullptr);
    AttentionArgs attention;
    attention.q = q;
    attention.tokens = tokens;
    attention.first_position = first_position;
    attention.heads = config.heads;
    attention.window = config.sliding_window.value_or(0);
    attention.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
    attention.k = k_plane;
    attention.v = v_plane;
    // Q lies in one of the two; the other is free.
    float* mixed = q == work.q.data() ? work.mixed.data() : work.q.data();
    attention.y = mixed;
    Attention(attention, pool);
    const SiteOutput out = ApplySite(block.site(Site::kAttnOut), mixed, tokens, work.site, pool);
    ApplyLinear(block.linear(Linear::kO), out, 0, work.normed.data(), pool);
    AddTo(work.stream.data(), work.normed.data(), tokens * config.hidden, pool);
  }

  // work.stream += mlp(norm(work.stream))
  void MlpHalf() {
    const ModelConfig& config = model.config;
    RmsNorm({work.stream.data(), block.post_attention_norm.data(), config.rms_eps, tokens,
             config.hidden, work.normed.data()},
            pool);
    const SiteOutput in =
        ApplySite(block.site(Site::kMlpIn), work.normed.data(), tokens, work.site, pool);
    ApplyLinear(block.linear(Linear::kGate), in, 0, work.gate.data(), pool);
    ApplyLinear(block.linear(Linear::kUp), in, 1, work.up.data(), pool);
    Swiglu({work.gate.data(), work.up.data(), tokens, config.ffn, work.gate.data()}, pool);
    const SiteOutput out =
        ApplySite(block.site(Site::kMlpOut), work.gate.data(), tokens, work.site, pool);
    ApplyLinear(block.linear(Linear::kDown), out, 0, work.normed.data(), pool);
    AddTo(work.stream.data(), work.normed.data(), tokens * config.hidden, pool);
  }
};

}  // namespace

Workspace::Workspace(const LoadedModel& model, int64_t max_tokens)
    : tokens(max_tokens),
      stream(Floats(tokens, model.config.hidden)),
      normed(Floats(tokens, model.config.hidden)),
      q(Floats(tokens, model.config.q_width())),
      k(Floats(tokens, model.config.kv_width())),
      v(Floats(tokens, model.config.kv_width())),
      mixed(Floats(tokens, model.config.q_width())),
      gate(Floats(tokens, model.config.ffn)),
      up(Floats(tokens, model.config.ffn)),
      cos(Floats(tokens, model.config.head_dim / 2)),
      sin(Floats(tokens, model.config.head_dim / 2)),
      site(MakeSiteBuffers(model, tokens)) {}

void SetRotation(const LoadedModel& model, int64_t first_position, int64_t tokens,
                 Workspace& workspace) {
  const size_t half = model.rope_frequencies.size();
  for (int64_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < half; ++i) {
      // The angle in float, as the networks were trained with; its sine and cosine
      // exactly.
      const float angle =
          static_cast<float>(first_position + t) * static_cast<float>(model.rope_frequencies[i]);
      const size_t index = static_cast<size_t>(t) * half + i;
      workspace.cos[index] = static_cast<float>(std::cos(static_cast<double>(angle)));
      workspace.sin[index] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

void RunBlock(const LoadedModel& model, size_t layer, int64_t first_position, int64_t tokens,
              KvCache& cache, Workspace& workspace, ThreadPool& pool) {
  BlockPass pass{model, model.blocks[layer], first_position, tokens, workspace, pool};
  pass.AttentionHalf(cache.k(layer), cache.v(layer));
  pass.MlpHalf();
}

}  // namespace flatquant
