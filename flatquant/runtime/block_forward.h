#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/store_heads/store_heads.h"
#include "flatquant/runtime/backend.h"
#include "flatquant/runtime/loaded_model.h"
#include "flatquant/runtime/profile.h"
#include "flatquant/runtime/site.h"

namespace flatquant {

// Memory of a forward pass over at most `tokens` tokens.
struct Workspace {
  Workspace(const LoadedModel& model, int64_t tokens);

  int64_t tokens;
  AlignedBuffer<int32_t> ids;   // [tokens]
  AlignedBuffer<float> stream;  // [tokens, hidden], the residual stream
  AlignedBuffer<float> q;       // [tokens, q_width]
  AlignedBuffer<float> k;       // [tokens, kv_width]
  AlignedBuffer<float> v;       // [tokens, kv_width]
  AlignedBuffer<float> mixed;   // [tokens, q_width], attention's output
  AlignedBuffer<float> gate;    // [tokens, ffn]
  AlignedBuffer<float> up;      // [tokens, ffn]
  AlignedBuffer<float> cos;     // [tokens, head_dim / 2]
  AlignedBuffer<float> sin;
  SiteBuffers site;
  std::vector<StoreHeadsArgs> heads;     // a layer's call, memory kept from layer to layer
  std::vector<AttentionArgs> attention;  // the same
  Profile* profile = nullptr;            // somebody else's; passes add their time to it
};

// Runs a pass of `tokens` rows, whose ids are in workspace.ids, through embedding
// and blocks. The segments' caches are KvCaches. The result is workspace.stream, and the caches
// hold the rows' K and V.
void RunSegments(const LoadedModel& model, std::span<const Segment> segments, int64_t tokens,
                 Workspace& workspace, ThreadPool& pool);

}  // namespace flatquant
