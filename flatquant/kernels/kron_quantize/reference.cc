#include <algorithm>
#include <cmath>
#include <cstring>

#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormReference;
extern const SwigluKernel kSwigluReference;

namespace {

void Transform(const KronTransform& transform, const float* x, int64_t tokens, int /*bits*/,
               const KronScratch& scratch, float* y) noexcept {
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  for (int64_t i = 0; i < tokens * rows; ++i) {
    const float* in = x + i * cols;
    float* half = scratch.half + i * cols;
    for (int64_t j = 0; j < cols; ++j) {
      if (transform.right.size() == 0) {
        half[j] = in[j];
        continue;
      }
      float sum = 0;
      for (int64_t k = 0; k < cols; ++k) {
        sum += in[k] * transform.right[static_cast<size_t>(k * transform.right_stride + j)];
      }
      half[j] = sum;
    }
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* half = scratch.half + t * rows * cols;
    float* out = y + t * rows * scratch.stride;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        if (transform.left.size() == 0) {
          out[i * scratch.stride + j] = half[i * cols + j];
          continue;
        }
        float sum = 0;
        for (int64_t k = 0; k < rows; ++k) {
          sum += transform.left[static_cast<size_t>(k * rows + i)] * half[k * cols + j];
        }
        out[i * scratch.stride + j] = sum;
      }
    }
  }
}

float ChooseScale(const KronToken& token, KronClip clip, float top) {
  float max = 0;
  float min = 0;
  for (int64_t i = 0; i < token.rows; ++i) {
    for (int64_t c = 0; c < token.cols; ++c) {
      max = std::max(max, token.y[i * token.stride + c]);
      min = std::min(min, token.y[i * token.stride + c]);
    }
  }
  const float scale = std::max(std::abs(clip.max * max), std::abs(clip.min * min)) / top;
  return scale > 0 ? scale : 1.0f;  // zeros, or too small to tell from them
}

void Quantize(const KronQuantizeArgs& args, int64_t t, const KronToken& token,
              KronAhead& /*ahead*/) noexcept {
  const int64_t width = token.rows * token.cols;
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  for (int64_t k = 0; k < args.clip_count; ++k) {
    const int64_t index = k * args.tokens + t;
    const float scale = ChooseScale(token, args.clips[k], top);
    int8_t* codes = args.codes + index * args.code_stride;
    for (int64_t i = 0; i < token.rows; ++i) {
      for (int64_t c = 0; c < token.cols; ++c) {
        const float q = std::nearbyint(token.y[i * token.stride + c] / scale);
        // The lower bound first: in this order NaN becomes a number.
        codes[i * token.cols + c] =
            static_cast<int8_t>(static_cast<int32_t>(std::min(std::max(-top - 1.0f, q), top)));
      }
    }
    std::memset(codes + width, 0, static_cast<size_t>(args.code_stride - width));
    args.scales[index] = scale;
  }
}

}  // namespace

extern const KronQuantizeKernel kKronQuantizeReference;
const KronQuantizeKernel kKronQuantizeReference = {.reads_tiles = false,
                                                   .rms_norm = &kRmsNormReference,
                                                   .swiglu = &kSwigluReference,
                                                   .transform = Transform,
                                                   .quantize = Quantize};

}  // namespace flatquant
