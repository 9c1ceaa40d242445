#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/swiglu/swiglu.h"

namespace flatquant {

// Factors that shrink a token's range before its scale is computed.
struct KronClip {
  float max = 1.0f;
  float min = 1.0f;
};

struct KronQuantizeKernel;

// The matrices of an online transform, in memory as kernels read them.
struct KronTransform {
  int64_t left_size = 1;       // L
  int64_t right_size = 0;      // R; L * R = width
  AlignedBuffer<float> left;   // [L, L], empty for the identity
  AlignedBuffer<float> right;  // [R, right_stride], zeros beyond R; empty for the identity
  int64_t right_stride = 0;
  // The same as tile operands (tile_operands.h), where the kernel wants them.
  AlignedBuffer<uint16_t> left_tiles;
  AlignedBuffer<uint16_t> right_tiles;
  const KronQuantizeKernel* kernel = nullptr;  // the one that it is packed for

  int64_t width() const { return left_size * right_size; }
  bool is_identity() const { return left.size() == 0 && right.size() == 0; }
  uint64_t bytes() const {
    return (left.size() + right.size()) * sizeof(float) +
           (left_tiles.size() + right_tiles.size()) * sizeof(uint16_t);
  }
};

// left: float [L, L], or nullptr; right: float [R, R], or nullptr; any alignment. A
// factor that is the identity matrix is dropped. kernel: nullptr takes the best one.
KronTransform PackKronTransform(int64_t left_size, const std::byte* left, int64_t right_size,
                                const std::byte* right, const KronQuantizeKernel* kernel = nullptr);

// What precedes a site: at most one of the two.
struct KronInputStage {
  const float* norm_weight = nullptr;  // [width]: RMSNorm of x, see rms_norm.h
  float norm_eps = 0;
  const float* up = nullptr;  // [tokens, width]: silu(x) * up, see swiglu.h

  bool is_none() const { return norm_weight == nullptr && up == nullptr; }
};

// Transforms each token x, viewed as X [L, R] (row-major), to Y = left^T X right,
// after the input stage, if there is one. With bits = 16 that is the result. With
// b = bits in 2..8 it is then quantized per token, once for each clip:
//
//   s = max(|clip.max * max(Y, 0)|, |clip.min * min(Y, 0)|) / (2^(b-1) - 1)
//   q = clamp(round(Y / s), -2^(b-1), 2^(b-1) - 1)
//
// with s = 1 for a token of zeros; round is half to even. A token's result depends
// on nothing but the token, whatever the others and the threads are.
struct KronQuantizeArgs {
  const float* x = nullptr;  // [tokens, width]
  KronInputStage input;
  int64_t tokens = 0;
  const KronTransform* transform = nullptr;
  int bits = 16;
  float* y = nullptr;  // bits 16: [tokens, width]; may be neither x nor input.up
  const KronClip* clips = nullptr;
  int64_t clip_count = 0;
  int8_t* codes = nullptr;  // [clip_count, tokens, code_stride], zeros beyond width
  int64_t code_stride = 0;  // a multiple of 64
  float* scales = nullptr;  // [clip_count, tokens]
};

// A token's matrix: rows `stride` elements apart.
struct KronToken {
  const float* y;
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

// The next tokens' input as far as nobody has asked memory for it: it arrives while these
// tokens are worked on, which needs no memory. A core holds few requests and stalls when
// there are more, so they are spread over all of a task's work (ask_ahead.h).
struct KronAhead {
  struct Range {
    const float* next = nullptr;
    const float* end = nullptr;
  };
  Range ranges[2];         // of x and of input.up
  int64_t step_lines = 0;  // that a step of the work asks for
};

// A thread's memory for the tokens of a task, each part 64-byte aligned.
struct KronScratch {
  int64_t stride = 0;        // R rounded up to 16: elements of a row of half and y
  float* input = nullptr;    // [tokens, L, R]: what the input stage made
  float* half = nullptr;     // [tokens * L + 15, stride]: X right
  float* y = nullptr;        // [tokens * L + 15, stride]; with both factors where input is
  uint16_t* high = nullptr;  // an operand of a tile product, see tile_operands.h
  uint16_t* low = nullptr;
  KronAhead* ahead = nullptr;  // never nullptr for a kernel
};

// What an instruction set supplies.
struct KronQuantizeKernel {
  bool reads_tiles;  // wants left_tiles and right_tiles
  const RmsNormKernel* rms_norm;
  const SwigluKernel* swiglu;
  // Where a unit has to be taken before calls of transform and given back after them; each
  // takes its time, so a thread does it once for many. Null where there is none.
  void (*take_unit)() noexcept = nullptr;
  void (*release_unit)() noexcept = nullptr;
  // Y of x [tokens, L, R] to y [tokens, L, scratch.stride], for a transform that is
  // not the identity; bits as in KronQuantizeArgs: how fine the result need be. Rows
  // are written in ascending order and up to 15 undefined ones after the last, so that
  // a kernel may store whole tiles. With both factors y may lie where x does: x is to be
  // read to its end, for X right, before y is written.
  void (*transform)(const KronTransform& transform, const float* x, int64_t tokens, int bits,
                    const KronScratch& scratch, float* y) noexcept;
  // Scales and codes of token t, which is y transformed. Each row that is read is a step of
  // `ahead`: rows (1 + clip_count) altogether.
  void (*quantize)(const KronQuantizeArgs& args, int64_t t, const KronToken& token,
                   KronAhead& ahead) noexcept;
};

void KronQuantize(const KronQuantizeArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
