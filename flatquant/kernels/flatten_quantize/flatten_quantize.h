#pragma once

#include <cstdint>
#include <span>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {

struct FlattenQuantizeKernel;

// A column beyond the first `width`: which channel it reads, and which piece of its
// integer.
struct FlattenColumn {
  int32_t channel = 0;
  int32_t piece = 0;
};

// How a site of `width` channels is flattened, in memory as kernels read it.
struct Flattening {
  int64_t width = 0;
  int bits = 4;
  float scale = 1;                 // of all tokens, above 0
  AlignedBuffer<int32_t> channel;  // [extra]
  AlignedBuffer<float> offset;     // [extra]: piece * (2^(bits-1) - 1)
  const FlattenQuantizeKernel* kernel = nullptr;

  int64_t extra() const { return static_cast<int64_t>(channel.size()); }
  int64_t columns() const { return width + extra(); }
  uint64_t bytes() const {
    return channel.size() * sizeof(int32_t) + offset.size() * sizeof(float);
  }
};

// width > 0; bits 2..8; channels lie in [0, width), and (piece + 1) * (2^(bits-1) - 1)
// is at most 32767. kernel: nullptr takes the best one.
Flattening MakeFlattening(int64_t width, int bits, float scale,
                          std::span<const FlattenColumn> extra,
                          const FlattenQuantizeKernel* kernel = nullptr);

// Quantizes each token x, after the input stage, if there is one, with one constant
// step s. A channel's integer may exceed the grid of b = bits in 2..8; it is cut into
// pieces that do not, each in a column of its own. With top = 2^(b-1) - 1:
//
//   q = round(x / s),  column (channel, piece) = sign(q) clamp(|q| - piece top, 0, top)
//
// Column c < width is (c, 0), column width + i is extra column i; round is half to even.
// Hence the sum of a channel's pieces 0..e-1 is clamp(q, -e top, e top).
struct FlattenQuantizeArgs {
  const float* x = nullptr;  // [tokens, width]
  KronInputStage input;
  int64_t tokens = 0;
  const Flattening* flattening = nullptr;
  int8_t* codes = nullptr;  // [tokens, code_stride], zeros beyond the columns
  int64_t code_stride = 0;  // a multiple of 64
  float* scales = nullptr;  // [tokens], all s: what a matrix product reads
};

// What an instruction set supplies.
struct FlattenQuantizeKernel {
  const RmsNormKernel* rms_norm;
  const SwigluKernel* swiglu;
  // The codes [code_stride] of one token, whose channels are x [width] and the values
  // that its extra columns read `gathered` [extra].
  void (*quantize)(const Flattening& flattening, const float* x, const float* gathered,
                   int8_t* codes, int64_t code_stride) noexcept;
};

void FlattenQuantize(const FlattenQuantizeArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
