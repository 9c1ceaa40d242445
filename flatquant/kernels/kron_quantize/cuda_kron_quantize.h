#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {

// A site's online side on a GPU, in one kernel: what feeds the site (a plain tensor,
// an RMSNorm or a SwiGLU), the transform left^T X right, and the quantization per
// token of kron_quantize.h. Products have operands of the activations' 16-bit type
// and float sums, between the two products too. All pointers are device memory.
// Calls launch on the stream and return; they neither allocate nor wait.

// What stands before the transform.
enum class CudaSiteInput : uint8_t {
  kPlain,    // x
  kRmsNorm,  // x * norm_weight / sqrt(mean x^2 + eps)
  kSwiglu,   // silu(x) * up
};

// The matrices as the kernels read them, in memory that somebody else owns:
// transposed, zero-padded to multiples of 16, of the activations' type.
struct CudaKronTransform {
  int64_t left_size = 0;  // L <= 256; 0: no transform, codes are those of the input
  int64_t right_size = 0;
  const void* packed = nullptr;  // [CudaKronPackedBytes], 16-byte aligned
};

constexpr int64_t CudaKronPackedBytes(int64_t left_size, int64_t right_size) {
  const int64_t left = (left_size + 15) / 16 * 16;
  const int64_t right = (right_size + 15) / 16 * 16;
  return (left * left + right * right) * 2;
}

// left: float [L, L], right: float [R, R]; nullptr for the identity. Once at load: wait for
// it before the matrices are used, which a launch may read before its predecessor on the
// stream has ended (cuda/dependent_launch.cuh).
void CudaPackKron(int64_t left_size, const float* left, int64_t right_size, const float* right,
                  DType dtype, void* packed, CudaStream stream);

inline constexpr int kCudaMaxClips = 4;

struct CudaKronQuantizeArgs {
  DType dtype = DType::kF16;  // of x, up, norm_weight, y: kF16 or kBF16
  CudaSiteInput input = CudaSiteInput::kPlain;
  const void* x = nullptr;            // [tokens, x_stride], 16-byte aligned
  const void* up = nullptr;           // the same, kSwiglu only
  const void* norm_weight = nullptr;  // [width], 16-byte aligned, kRmsNorm only
  float eps = 1e-5f;
  int64_t x_stride = 0;  // elements, a multiple of 8
  int64_t width = 0;     // elements of a token, L * R where there is a transform
  int64_t tokens = 0;
  CudaKronTransform transform;
  int bits = 4;                   // 2..8, or 16 for y alone
  void* y = nullptr;              // bits 16: [tokens, width]
  KronClip clips[kCudaMaxClips];  // one quantization for each
  int clip_count = 1;
  int8_t* codes =
      nullptr;  // [clip_count, tokens, code_stride], 16-byte aligned, zeros beyond width
  int64_t code_stride = 0;  // a multiple of 64
  float* scales = nullptr;  // [clip_count, tokens]
};

// Errors: cuda.unsupported_width when a token does not fit in shared memory.
void CudaKronQuantize(const CudaKronQuantizeArgs& args, CudaStream stream);

}  // namespace flatquant
