#include "flatquant/kernels/kron_quantize/kron_quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct TransformedTag {};

constexpr int64_t kRowAlign = 16;

int64_t RoundUp(int64_t n) { return (n + kRowAlign - 1) / kRowAlign * kRowAlign; }

// Tokens of a task: up to 16, as long as their transformed values (256 KB at most)
// stay in L2.
int64_t TokenSlice(int64_t width) {
  constexpr int64_t kElements = 65536;
  return std::clamp<int64_t>(kElements / std::max<int64_t>(1, width), 1, 16);
}

// One transformed token: `rows` rows of `cols` elements, `stride` apart.
struct Token {
  const float* y;
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

float ChooseScale(const Token& token, KronClip clip, float top) {
  constexpr int64_t kLanes = 8;  // partial extremes, so that the compiler can vectorise
  float hi[kLanes] = {};
  float lo[kLanes] = {};
  for (int64_t i = 0; i < token.rows; ++i) {
    const float* y = token.y + i * token.stride;
    int64_t c = 0;
    for (; c + kLanes <= token.cols; c += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) {
        hi[j] = std::max(hi[j], y[c + j]);
        lo[j] = std::min(lo[j], y[c + j]);
      }
    }
    for (; c < token.cols; ++c) {
      hi[0] = std::max(hi[0], y[c]);
      lo[0] = std::min(lo[0], y[c]);
    }
  }
  const float max = *std::max_element(hi, hi + kLanes);
  const float min = *std::min_element(lo, lo + kLanes);
  const float scale = std::max(std::abs(clip.max * max), std::abs(clip.min * min)) / top;
  return scale > 0 ? scale : 1.0f;  // zeros, or too small to tell from them
}

void Quantize(const Token& token, float scale, float top, int8_t* codes) {
  for (int64_t i = 0; i < token.rows; ++i) {
    const float* y = token.y + i * token.stride;
    int8_t* row = codes + i * token.cols;
    for (int64_t c = 0; c < token.cols; ++c) {
      const float q = std::nearbyint(y[c] / scale);
      // The lower bound first: in this order NaN becomes a number.
      row[c] = static_cast<int8_t>(static_cast<int32_t>(std::min(std::max(-top - 1.0f, q), top)));
    }
  }
}

void Finish(const KronQuantizeArgs& args, int64_t t, const Token& token) {
  if (args.bits == 16) {
    float* y = args.y + t * args.transform->width();
    for (int64_t i = 0; i < token.rows; ++i) {
      std::memcpy(y + i * token.cols, token.y + i * token.stride,
                  static_cast<size_t>(token.cols) * sizeof(float));
    }
    return;
  }
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  for (int64_t k = 0; k < args.clip_count; ++k) {
    const int64_t index = k * args.tokens + t;
    const float scale = ChooseScale(token, args.clips[k], top);
    int8_t* codes = args.codes + index * args.code_stride;
    Quantize(token, scale, top, codes);
    std::memset(codes + args.transform->width(), 0,
                static_cast<size_t>(args.code_stride - args.transform->width()));
    args.scales[index] = scale;
  }
}

AlignedBuffer<float> CopySquare(const std::byte* from, int64_t size, int64_t stride) {
  if (from == nullptr) return {};
  AlignedBuffer<float> to(static_cast<size_t>(size * stride));
  const size_t row_bytes = static_cast<size_t>(size) * sizeof(float);
  for (int64_t i = 0; i < size; ++i) {
    std::memcpy(to.data() + i * stride, from + static_cast<size_t>(i) * row_bytes, row_bytes);
  }
  return to;
}

}  // namespace

KronTransform PackKronTransform(int64_t left_size, const std::byte* left, int64_t right_size,
                                const std::byte* right) {
  FLATQUANT_CHECK(left_size > 0 && right_size > 0);
  KronTransform transform;
  transform.left_size = left_size;
  transform.right_size = right_size;
  transform.left = CopySquare(left, left_size, left_size);
  transform.right_stride = RoundUp(right_size);
  transform.right = CopySquare(right, right_size, transform.right_stride);
  return transform;
}

void KronQuantize(const KronQuantizeArgs& args, ThreadPool& pool,
                  const KronQuantizeKernel* kernel) noexcept {
  const KronTransform& transform = *args.transform;
  const int64_t width = transform.width();
  FLATQUANT_CHECK(args.bits == 16 ||
                  (args.code_stride >= width && args.bits >= 2 && args.bits <= 8));
  if (kernel == nullptr) kernel = BestKernel<KronQuantizeKernel>().kernel;
  const bool is_identity = transform.left.size() == 0 && transform.right.size() == 0;
  const int64_t stride = RoundUp(transform.right_size);
  const int64_t token_elements = transform.left_size * stride;
  const int64_t slice = TokenSlice(width);
  pool.ParallelFor(static_cast<size_t>(args.tokens), static_cast<size_t>(slice),
                   [&](size_t begin, size_t end) {
                     const int64_t first = static_cast<int64_t>(begin);
                     const int64_t last = static_cast<int64_t>(end);
                     if (is_identity) {
                       for (int64_t t = first; t < last; ++t) {
                         Finish(args, t, {args.x + t * width, 1, width, width});
                       }
                       return;
                     }
                     float* y = ThreadScratch<TransformedTag, float>(
                         static_cast<size_t>((last - first) * token_elements));
                     kernel->transform(args, first, last, y, stride);
                     for (int64_t t = first; t < last; ++t) {
                       Finish(args, t,
                              {y + (t - first) * token_elements, transform.left_size,
                               transform.right_size, stride});
                     }
                   });
}

}  // namespace flatquant
