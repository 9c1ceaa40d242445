#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"

namespace flatquant {

// Factors that shrink a token's range before its scale is computed.
struct KronClip {
  float max = 1.0f;
  float min = 1.0f;
};

// The matrices of an online transform, in memory as kernels read them: rows of
// `right` padded with zeros to right_stride.
struct KronTransform {
  int64_t left_size = 1;       // L
  int64_t right_size = 0;      // R; L * R = width
  AlignedBuffer<float> left;   // [L, L], empty for the identity
  AlignedBuffer<float> right;  // [R, right_stride], empty for the identity
  int64_t right_stride = 0;

  int64_t width() const { return left_size * right_size; }
  uint64_t bytes() const { return (left.size() + right.size()) * sizeof(float); }
};

// left: float [L, L], or nullptr; right: float [R, R], or nullptr; any alignment.
KronTransform PackKronTransform(int64_t left_size, const std::byte* left, int64_t right_size,
                                const std::byte* right);

// Transforms each token x, viewed as X [L, R] (row-major), to Y = left^T X right.
// With bits = 16 that is the result. With b = bits in 2..8 it is then quantized
// per token, once for each clip:
//
//   s = max(|clip.max * max(Y, 0)|, |clip.min * min(Y, 0)|) / (2^(b-1) - 1)
//   q = clamp(round(Y / s), -2^(b-1), 2^(b-1) - 1)
//
// with s = 1 for a token of zeros; round is half to even.
struct KronQuantizeArgs {
  const float* x = nullptr;  // [tokens, width]
  int64_t tokens = 0;
  const KronTransform* transform = nullptr;
  int bits = 16;
  float* y = nullptr;  // bits 16: [tokens, width]; may not be x
  const KronClip* clips = nullptr;
  int64_t clip_count = 0;
  int8_t* codes = nullptr;  // [clip_count, tokens, code_stride], zeros beyond width
  int64_t code_stride = 0;  // a multiple of 64
  float* scales = nullptr;  // [clip_count, tokens]
};

struct KronQuantizeKernel {
  // Y of tokens [token_begin, token_end) to y, rows of transform->right_size in
  // rows of `stride` elements (stride >= right_size and a multiple of 16).
  void (*transform)(const KronQuantizeArgs& args, int64_t token_begin, int64_t token_end, float* y,
                    int64_t stride) noexcept;
};

// kernel: nullptr takes the best one.
void KronQuantize(const KronQuantizeArgs& args, ThreadPool& pool,
                  const KronQuantizeKernel* kernel = nullptr) noexcept;

}  // namespace flatquant
