#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

namespace flatquant {

// attention.h's causal attention over packed K and V on a GPU. All pointers are device
// memory. Calls launch on the stream and return; they neither allocate nor wait.
struct CudaAttentionArgs {
  DType dtype = DType::kF16;  // of q and y: kF16 or kBF16
  const void* q = nullptr;    // [tokens, heads, head_dim], 16-byte aligned
  void* y = nullptr;          // [tokens, heads, head_dim], 16-byte aligned
  int64_t tokens = 0;
  int64_t heads = 0;   // a multiple of the planes' heads
  int64_t window = 0;  // positions that a token sees, itself included; 0: all
  float scale = 1.0f;  // usually 1 / sqrt(head_dim)
  CudaKvPlane k;
  CudaKvPlane v;
};

// Decode: token i is the last one of the sequence in slot slots[i], which holds
// lengths[i] >= 1 positions, the token's own included. Both are read on the device, so a
// captured graph can be replayed as sequences grow; max_length, the longest that they
// may become, only decides how many CTAs share a sequence.
// workspace: CudaAttentionWorkspaceBytes, 16-byte aligned.
struct CudaAttentionDecodeArgs : CudaAttentionArgs {
  const int32_t* slots = nullptr;
  const int32_t* lengths = nullptr;
  int64_t max_length = 0;
  void* workspace = nullptr;
};

int64_t CudaAttentionWorkspaceBytes(const CudaAttentionDecodeArgs& args);
void CudaAttentionDecode(const CudaAttentionDecodeArgs& args, CudaStream stream);

// Prefill: the tokens are new ones of one sequence, token t at first_position + t.
struct CudaAttentionPrefillArgs : CudaAttentionArgs {
  int64_t slot = 0;
  int64_t first_position = 0;
};

void CudaAttentionPrefill(const CudaAttentionPrefillArgs& args, CudaStream stream);

}  // namespace flatquant
