#include "flatquant/runtime/block_forward.h"

#include <cmath>

#include "flatquant/runtime/block_flow.h"
#include "flatquant/runtime/head.h"
#include "flatquant/runtime/kv_cache.h"

namespace flatquant {
namespace {

AlignedBuffer<float> Floats(int64_t tokens, int64_t width) {
  return AlignedBuffer<float>(static_cast<size_t>(tokens * width));
}

// The steps of a block (block_flow.h) on this machine's processors.
struct CpuOps {
  const LoadedModel& model;
  const LoadedBlock& block;
  size_t layer;
  std::span<const Segment> segments;
  int64_t tokens;  // of all segments
  Workspace& work;
  ThreadPool& pool;
  SiteOutput input = {};  // of the site that was entered last

  void EnterNormed(Site site) {
    const AlignedBuffer<float>& norm =
        site == Site::kAttnIn ? block.input_norm : block.post_attention_norm;
    EnterWith(site, work.stream.data(),
              {.norm_weight = norm.data(), .norm_eps = model.config.rms_eps});
  }

  void Enter(Site site) {
    if (site == Site::kAttnOut) {
      EnterWith(site, work.mixed.data(), {});
    } else {
      EnterWith(site, work.gate.data(), {.up = work.up.data()});
    }
  }

  void EnterWith(Site site, const float* x, const KronInputStage& before) {
    const PhaseTimer timer(work.profile, Phase::kSites);
    input = ApplySite(block.site(site), x, before, tokens, work.site, pool);
  }

  void ApplyLinears(Site site) {
    const PhaseTimer timer(work.profile, Phase::kLinears);
    if (site == Site::kAttnIn) {
      flatquant::ApplyLinears({{&block.linear(Linear::kQ), work.q.data()},
                               {&block.linear(Linear::kK), work.k.data()},
                               {&block.linear(Linear::kV), work.v.data()}},
                              input, pool);
    } else {
      flatquant::ApplyLinears({{&block.linear(Linear::kGate), work.gate.data()},
                               {&block.linear(Linear::kUp), work.up.data()}},
                              input, pool);
    }
  }

  void AddLinear(Site site) {
    const PhaseTimer timer(work.profile, Phase::kLinears);
    flatquant::AddLinear(block.linear(LinearsOf(site)[0]), input, work.stream.data(), pool);
  }

  // The segment's rows of a role; first_row is theirs in the workspace's rotation.
  StoreHeadsArgs Heads(const float* x, int64_t heads, int64_t first_row, int64_t rows) {
    StoreHeadsArgs args;
    args.head_dim = model.config.head_dim;
    args.heads = heads;
    args.x = x + first_row * heads * args.head_dim;
    args.tokens = rows;
    return args;
  }

  // Per-head norm (Qwen3), rotation, the cache's transform.
  void Turn(StoreHeadsArgs& args, int64_t first_row, const AlignedBuffer<float>& norm,
            const KronTransform* transform) {
    const int64_t half = args.head_dim / 2;
    if (norm.size() > 0) args.norm = norm.data();
    args.norm_eps = model.config.rms_eps;
    args.cos = work.cos.data() + first_row * half;
    args.sin = work.sin.data() + first_row * half;
    args.transform = transform;
  }

  static const KvCache& CacheOf(const Segment& segment) {
    return static_cast<const KvCache&>(*segment.cache);
  }

  // K and V to the caches, Q ready for attention in work.q.
  void StoreHeads() {
    const PhaseTimer timer(work.profile, Phase::kCache);
    const LoadedCache& cache = block.cache;
    work.heads.clear();
    for (const Segment& segment : segments) {
      const auto to_cache = [&](const float* x, const KvPlane& plane, KronClip clip) {
        StoreHeadsArgs args = Heads(x, model.config.kv_heads, segment.row_begin, segment.tokens);
        args.plane = plane;
        args.first_position = segment.first_position;
        args.clip_max = clip.max;
        args.clip_min = clip.min;
        return args;
      };
      StoreHeadsArgs k = to_cache(work.k.data(), CacheOf(segment).k(layer), cache.k_clip);
      Turn(k, segment.row_begin, block.k_norm,
           cache.has_k_transform ? &cache.k_transform : nullptr);
      work.heads.push_back(k);
      work.heads.push_back(to_cache(work.v.data(), CacheOf(segment).v(layer), cache.v_clip));
    }
    StoreHeadsArgs q = Heads(work.q.data(), model.config.heads, 0, tokens);
    Turn(q, 0, block.q_norm, cache.has_q_transform ? &cache.q_transform : nullptr);
    q.y = work.q.data();
    work.heads.push_back(q);
    flatquant::StoreHeads(work.heads, pool);
  }

  // work.mixed = attention of each segment's rows of work.q over its cache.
  void Attend() {
    const PhaseTimer timer(work.profile, Phase::kAttention);
    const ModelConfig& config = model.config;
    work.attention.clear();
    for (const Segment& segment : segments) {
      const int64_t first = segment.row_begin * config.q_width();
      AttentionArgs args;
      args.q = work.q.data() + first;
      args.tokens = segment.tokens;
      args.first_position = segment.first_position;
      args.heads = config.heads;
      args.window = config.sliding_window.value_or(0);
      args.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
      args.k = CacheOf(segment).k(layer);
      args.v = CacheOf(segment).v(layer);
      args.y = work.mixed.data() + first;
      work.attention.push_back(args);
    }
    Attention(work.attention, pool);
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
    CpuOps ops{model, model.blocks[layer], layer, segments, tokens, workspace, pool};
    RunBlock(ops);
  }
}

}  // namespace flatquant
