#include "flatquant/runtime/block_forward.h"

#include <cmath>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/embedding/embedding.h"
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
  size_t layer;
  std::span<const Segment> segments;
  int64_t tokens;  // of all segments
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

  // Appends the segment's rows of k and v to its cache.
  void Store(const Segment& segment, const float* k, const float* v) {
    const int64_t first = segment.row_begin * model.config.kv_width();
    const LoadedCache& cache = block.cache;
    QuantizeKv({k + first, segment.tokens, segment.first_position, cache.k_clip.max,
                cache.k_clip.min, segment.cache->k(layer)},
               pool);
    QuantizeKv({v + first, segment.tokens, segment.first_position, cache.v_clip.max,
                cache.v_clip.min, segment.cache->v(layer)},
               pool);
  }

  // y = the attention of the segment's rows of q over its cache; q and y [tokens,
  // q_width] of the whole pass.
  void Attend(const Segment& segment, const float* q, float* y) {
    const ModelConfig& config = model.config;
    const int64_t first = segment.row_begin * config.q_width();
    AttentionArgs args;
    args.q = q + first;
    args.tokens = segment.tokens;
    args.first_position = segment.first_position;
    args.heads = config.heads;
    args.window = config.sliding_window.value_or(0);
    args.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
    args.k = segment.cache->k(layer);
    args.v = segment.cache->v(layer);
    args.y = y + first;
    Attention(args, pool);
  }

  // work.stream += attention(norm(work.stream))
  void AttentionHalf() {
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
    for (const Segment& segment : segments) Store(segment, k, work.v.data());
    const float* q = PrepareHeads(work.q.data(), config.heads, block.q_norm,
                                  cache.has_q_transform ? &cache.q_transform : nullptr);
    // Q lies in one of the two; the other is free.
    float* mixed = q == work.q.data() ? work.mixed.data() : work.q.data();
    for (const Segment& segment : segments) Attend(segment, q, mixed);
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

// The rotation of the segment's positions, in its rows of the workspace.
void SetRotation(const LoadedModel& model, const Segment& segment, Workspace& workspace) {
  const size_t half = model.rope_frequencies.size();
  for (int64_t t = 0; t < segment.tokens; ++t) {
    const float position = static_cast<float>(segment.first_position + t);
    const size_t row = static_cast<size_t>(segment.row_begin + t) * half;
    for (size_t i = 0; i < half; ++i) {
      // The angle in float, as the networks were trained with; its sine and cosine
      // exactly.
      const float angle = position * static_cast<float>(model.rope_frequencies[i]);
      workspace.cos[row + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
      workspace.sin[row + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

}  // namespace

Workspace::Workspace(const LoadedModel& model, int64_t max_tokens)
    : tokens(max_tokens),
      ids(static_cast<size_t>(tokens)),
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

void RunSegments(const LoadedModel& model, std::span<const Segment> segments, int64_t tokens,
                 Workspace& workspace, ThreadPool& pool) {
  Embedding({model.embedding.data, model.embedding.dtype, model.config.vocab, workspace.ids.data(),
             tokens, model.config.hidden, workspace.stream.data()},
            pool);
  for (const Segment& segment : segments) SetRotation(model, segment, workspace);
  for (size_t layer = 0; layer < model.blocks.size(); ++layer) {
    BlockPass pass{model, model.blocks[layer], layer, segments, tokens, workspace, pool};
    pass.AttentionHalf();
    pass.MlpHalf();
  }
}

}  // namespace flatquant
