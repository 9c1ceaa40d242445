#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

namespace flatquant {

// attention.h's causal attention over the cache on a GPU. All pointers are device
// memory. Calls launch on the stream and return; they neither allocate nor wait.
struct CudaAttentionArgs {
  DType dtype = DType::kF16;  // of q and y: kF16 or kBF16
  const void* q = nullptr;    // [tokens, heads, head_dim], 16-byte aligned
  void* y = nullptr;          // [tokens, heads, head_dim], 16-byte aligned
  int64_t tokens = 0;
  int64_t heads = 0;   // a multiple of the planes' heads
  int64_t window = 0;  // positions that a token sees, itself included; 0: all
  float scale = 1.0f;  // positive, usually 1 / sqrt(head_dim)
  CudaKvPlane k;
  CudaKvPlane v;
};

// Decode: token i is the last one of the sequence in slot slots[i], which holds
// lengths[i] >= 1 positions, the token's own included. Both are read on the device, so a
// captured graph can be replayed as sequences grow; max_length, the longest that they
// may become, only decides how many CTAs share a sequence.
// They, and the cache but for each sequence's last position, may be read before the kernel's
// predecessor on the stream has ended (cuda/dependent_launch.cuh).
// workspace: CudaAttentionWorkspaceBytes, 16-byte aligned.
struct CudaAttentionDecodeArgs : CudaAttentionArgs {
  const int32_t* slots = nullptr;
  const int32_t* lengths = nullptr;
  int64_t max_length = 0;
  void* workspace = nullptr;
};

int64_t CudaAttentionWorkspaceBytes(const CudaAttentionDecodeArgs& args);
void CudaAttentionDecode(const CudaAttentionDecodeArgs& args, CudaStream stream);

// Some tokens of one sequence: rows [first_row, first_row + tokens) of q and y, token t of
// them at first_position + t.
struct CudaAttentionSegment {
  int32_t slot = 0;
  int32_t first_position = 0;
  int32_t first_row = 0;
  int32_t tokens = 0;
};
inline constexpr int64_t kCudaMaxSegments = 64;

// Prefill: the tokens are new ones of one sequence, token t at first_position + t; or of
// several.
struct CudaAttentionPrefillArgs : CudaAttentionArgs {
  int64_t slot = 0;
  int64_t first_position = 0;
  // Host memory, read before the call returns, instead of slot and first_position; rows that
  // no segment names are left as they are.
  const CudaAttentionSegment* segments = nullptr;
  int64_t segment_count = 0;  // up to kCudaMaxSegments
};

void CudaAttentionPrefill(const CudaAttentionPrefillArgs& args, CudaStream stream);

}  // namespace flatquant
