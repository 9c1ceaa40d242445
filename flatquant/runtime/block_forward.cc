#include "flatquant/runtime/block_forward.h"

#include <cmath>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/rope/rope.h"
#include "flatquant/runtime/head.h"

namespace flatquant {
namespace {

AlignedBuffer<float> Floats(int64_t tokens, int64_t width) {
  return AlignedBuffer<float>(static_cast<size_t>(tokens * width));
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

  SiteOutput Enter(Site site, const float* x, const KronInputStage& before) {
    const PhaseTimer timer(work.profile, Phase::kSites);
    return ApplySite(block.site(site), x, before, tokens, work.site, pool);
  }

  // A site that reads the norm of the stream.
  SiteOutput EnterNormed(Site site, const AlignedBuffer<float>& norm) {
    return Enter(site, work.stream.data(),
                 {.norm_weight = norm.data(), .norm_eps = model.config.rms_eps});
  }

  void Multiply(std::initializer_list<LinearCall> calls, const SiteOutput& input) {
    const PhaseTimer timer(work.profile, Phase::kLinears);
    ApplyLinears(calls, input, pool);
  }

  void AddToStream(Linear which, const SiteOutput& input) {
    const PhaseTimer timer(work.profile, Phase::kLinears);
    AddLinear(block.linear(which), input, work.stream.data(), pool);
  }

  // Per-head norm (Qwen3), then rotation, then the cache's transform; the result
  // is in x or, when there is a transform, in work.mixed.
  const float* PrepareHeads(float* x, int64_t heads, const AlignedBuffer<float>& norm,
                            const KronTransform* transform) {
    const PhaseTimer timer(work.profile, Phase::kCache);
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

  void StoreAll(const float* k, const float* v) {
    const PhaseTimer timer(work.profile, Phase::kCache);
    for (const Segment& segment : segments) Store(segment, k, v);
  }

  void AttendAll(const float* q, float* y) {
    const PhaseTimer timer(work.profile, Phase::kAttention);
    for (const Segment& segment : segments) Attend(segment, q, y);
  }

  // work.stream += attention(norm(work.stream))
  void AttentionHalf() {
    const ModelConfig& config = model.config;
    const LoadedCache& cache = block.cache;
    const SiteOutput in = EnterNormed(Site::kAttnIn, block.input_norm);
    Multiply({{&block.linear(Linear::kQ), work.q.data()},
              {&block.linear(Linear::kK), work.k.data()},
              {&block.linear(Linear::kV), work.v.data()}},
             in);
    const float* k = PrepareHeads(work.k.data(), config.kv_heads, block.k_norm,
                                  cache.has_k_transform ? &cache.k_transform : nullptr);
    StoreAll(k, work.v.data());
    const float* q = PrepareHeads(work.q.data(), config.heads, block.q_norm,
                                  cache.has_q_transform ? &cache.q_transform : nullptr);
    // Q lies in one of the two; the other is free.
    float* mixed = q == work.q.data() ? work.mixed.data() : work.q.data();
    AttendAll(q, mixed);
    AddToStream(Linear::kO, Enter(Site::kAttnOut, mixed, {}));
  }

  // work.stream += mlp(norm(work.stream))
  void MlpHalf() {
    const SiteOutput in = EnterNormed(Site::kMlpIn, block.post_attention_norm);
    Multiply({{&block.linear(Linear::kGate), work.gate.data()},
              {&block.linear(Linear::kUp), work.up.data()}},
             in);
    AddToStream(Linear::kDown, Enter(Site::kMlpOut, work.gate.data(), {.up = work.up.data()}));
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
  {
    const PhaseTimer timer(workspace.profile, Phase::kOther);
    EmbedTokens(model, {workspace.ids.data(), static_cast<size_t>(tokens)}, workspace.stream.data(),
                pool);
    for (const Segment& segment : segments) SetRotation(model, segment, workspace);
  }
  for (size_t layer = 0; layer < model.blocks.size(); ++layer) {
    BlockPass pass{model, model.blocks[layer], layer, segments, tokens, workspace, pool};
    pass.AttentionHalf();
    pass.MlpHalf();
  }
}

}  // namespace flatquant
