#include "flatquant/base/error.h"
#include "flatquant/kernels/attention/cuda_check.h"
#include "flatquant/kernels/attention/cuda_prefill.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"

namespace flatquant {
namespace cuda {

PrefillParams MakePrefillParams(const CudaAttentionPrefillArgs& args, int64_t tile_tokens) {
  PrefillParams params;
  params.args = args;
  const CudaAttentionSegment whole = {static_cast<int32_t>(args.slot),
                                      static_cast<int32_t>(args.first_position), 0,
                                      static_cast<int32_t>(args.tokens)};
  const int64_t count = args.segments == nullptr ? 1 : args.segment_count;
  for (int64_t i = 0; i < count; ++i) {
    const CudaAttentionSegment& segment = args.segments == nullptr ? whole : args.segments[i];
    if (segment.tokens == 0) continue;
    params.first_tile[params.segments] = params.tiles;
    params.segment[params.segments++] = segment;
    params.tiles += static_cast<int>(CeilDiv(segment.tokens, tile_tokens));
  }
  return params;
}

}  // namespace cuda

void CudaAttentionPrefill(const CudaAttentionPrefillArgs& args, CudaStream stream) {
  CheckCudaAttention(args);
  FLATQUANT_CHECK(args.segment_count <= kCudaMaxSegments);
  if (args.segments == nullptr) {
    FLATQUANT_CHECK(args.first_position + args.tokens <= args.k.capacity);
  }
  for (int64_t i = 0; i < args.segment_count; ++i) {
    const CudaAttentionSegment& segment = args.segments[i];
    FLATQUANT_CHECK(int64_t{segment.first_position} + segment.tokens <= args.k.capacity);
    FLATQUANT_CHECK(int64_t{segment.first_row} + segment.tokens <= args.tokens);
  }
  if (args.tokens == 0) return;
  if (CurrentCudaDevice().sm_version == 90) {
    cuda::AttentionPrefillWgmma(args, stream);
  } else {
    cuda::AttentionPrefillMma(args, stream);
  }
}

}  // namespace flatquant
