#pragma once

#include <cstdint>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/kv_cache.h"
#include "flatquant/runtime/loaded_model.h"
#include "flatquant/runtime/site.h"

namespace flatquant {

// Memory of a forward pass over at most `tokens` tokens.
struct Workspace {
  Workspace(const LoadedModel& model, int64_t tokens);

  int64_t tokens;
  AlignedBuffer<float> stream;  // [tokens, hidden], the residual stream
  AlignedBuffer<float> normed;  // [tokens, hidden], also a linear's output
  AlignedBuffer<float> q;       // [tokens, q_width]
  AlignedBuffer<float> k;       // [tokens, kv_width]
  AlignedBuffer<float> v;       // [tokens, kv_width]
  AlignedBuffer<float> mixed;   // [tokens, q_width], transformed K or Q, attention's output
  AlignedBuffer<float> gate;    // [tokens, ffn]
  AlignedBuffer<float> up;      // [tokens, ffn]
  AlignedBuffer<float> cos;     // [tokens, head_dim / 2]
  AlignedBuffer<float> sin;
  SiteBuffers site;
};

// Fills the workspace's rotation for tokens at positions first_position + t.
void SetRotation(const LoadedModel& model, int64_t first_position, int64_t tokens,
                 Workspace& workspace);

// One decoder block, in place on workspace.stream; appends to the cache.
void RunBlock(const LoadedModel& model, size_t layer, int64_t first_position, int64_t tokens,
              KvCache& cache, Workspace& workspace, ThreadPool& pool);

}  // namespace flatquant
