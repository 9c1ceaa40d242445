#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {

// The K or the V cache of one layer on a GPU, for several sequences: each has a slot.
// As KvPlane with a slot in front: the vector of slot s, KV head h and position p is
// number (s * heads + h) * capacity + p. With 2..4 bits elements are nibbles (even
// element low) and stand for (q - zero) * scale; with 16 bits they are of the
// activations' type. A scale is a bfloat16, which codes are made with: it has a float's range,
// and a step's attention, which reads the whole cache, 3 bytes for a vector beside its codes.
struct CudaKvPlane {
  int bits = 4;  // 2..4, or 16
  int64_t heads = 0;
  int64_t head_dim = 0;       // 64 or 128
  int64_t capacity = 0;       // positions per slot, a multiple of 32
  uint8_t* data = nullptr;    // [slots, heads, capacity, VectorBytes()], 16-byte aligned
  uint16_t* scale = nullptr;  // [slots, heads, capacity], 16-byte aligned; 16 bits: nullptr
  uint8_t* zero = nullptr;    // the same

  constexpr bool packed() const { return bits <= 4; }
  constexpr int64_t VectorBytes() const { return packed() ? head_dim / 2 : head_dim * 2; }
};

// What follows the q, k and v projections, in one kernel: RMSNorm and rotary embedding of
// each head of Q and K (store_heads.h), the transforms of both (x P, P of [head_dim, head_dim]),
// and K and V into the cache as quantize_kv.h says. Q, transformed, goes to `q`.
// Positions, slots, angles and transforms may be read before the kernel's predecessor on the
// stream has ended (cuda/dependent_launch.cuh).
struct CudaQuantizeKvArgs {
  DType dtype = DType::kF16;  // of qkv and q: kF16 or kBF16
  // [tokens, qkv_stride], 16-byte aligned: heads of Q, then K's, then V's
  const void* qkv = nullptr;
  int64_t qkv_stride = 0;  // elements, a multiple of 8
  int64_t tokens = 0;
  int64_t heads = 0;                   // of Q
  const int32_t* positions = nullptr;  // [tokens], below the planes' capacity
  const int32_t* slots = nullptr;      // [tokens]
  const void* q_norm = nullptr;        // [head_dim] of dtype, 16-byte aligned; nullptr: no norm
  const void* k_norm = nullptr;
  float norm_eps = 0;
  const float* cos = nullptr;  // [positions, head_dim / 2], 16-byte aligned; nullptr: no rotation
  const float* sin = nullptr;
  const void* q_transform = nullptr;  // CudaPackHeadTransform's, or nullptr
  const void* k_transform = nullptr;
  KronClip k_clip;
  KronClip v_clip;
  CudaKvPlane k;  // of equal heads and head_dim; formats may differ
  CudaKvPlane v;
  void* q = nullptr;  // [tokens, heads, head_dim], 16-byte aligned
};

// Errors: cuda.unsupported_head_dim.
void CudaQuantizeKv(const CudaQuantizeKvArgs& args, CudaStream stream);

// Brings P, float [head_dim, head_dim], into the kernel's layout and type:
// head_dim * head_dim * 2 bytes, 16-byte aligned. Once at load.
void CudaPackHeadTransform(const float* matrix, int64_t head_dim, DType dtype, void* packed,
                           CudaStream stream);

}  // namespace flatquant
