#pragma once

#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/cuda/element.cuh"

// What the kernels behind CudaAttentionPrefill share.
namespace flatquant::cuda {

// By value in a launch. A CTA takes a tile: some consecutive tokens of one segment and
// one query head.
struct PrefillParams {
  CudaAttentionArgs args;
  int segments = 0;
  int tiles = 0;
  int first_tile[kCudaMaxSegments] = {};
  CudaAttentionSegment segment[kCudaMaxSegments];
};

// A tile's tokens: [token0, token0 + tokens) of the rows of q, the first at position0.
struct PrefillTile {
  int64_t base;  // number of the first vector of its slot and KV head
  int row0;
  int tokens;
  int position0;
};

__device__ inline PrefillTile TileAt(const PrefillParams& params, int tile, int kv_head,
                                     int tile_tokens) {
  int low = 0;  // the last segment that starts at or before the tile
  for (int high = params.segments; high - low > 1;) {
    const int middle = (low + high) / 2;
    (params.first_tile[middle] <= tile ? low : high) = middle;
  }
  const CudaAttentionSegment& segment = params.segment[low];
  const int token0 = (tile - params.first_tile[low]) * tile_tokens;
  return {(segment.slot * params.args.k.heads + kv_head) * params.args.k.capacity,
          segment.first_row + token0, min(tile_tokens, segment.tokens - token0),
          segment.first_position + token0};
}

PrefillParams MakePrefillParams(const CudaAttentionPrefillArgs& args, int64_t tile_tokens);

// Any GPU from sm_80.
void AttentionPrefillMma(const CudaAttentionPrefillArgs& args, CudaStream stream);

// sm_90a.
void AttentionPrefillWgmma(const CudaAttentionPrefillArgs& args, CudaStream stream);

// Calls run(T{}, V{}): elements of Q, and of V as it is multiplied. Packed weights times
// V's scales span more than half's range; bfloat16 holds them, and q - zero exactly.
template <typename Run>
void ForPrefillElements(const CudaAttentionArgs& args, const Run& run) {
  ForElement(args.dtype, [&](auto element) {
    if (args.v.packed()) {
      run(element, __nv_bfloat16{});
    } else {
      run(element, element);
    }
  });
}

}  // namespace flatquant::cuda
