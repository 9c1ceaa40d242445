#include <algorithm>
#include <cmath>

#include "flatquant/base/half.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct WeightTag {};
struct VectorTag {};

void LoadVector(const KvPlane& plane, int64_t head, int64_t position, float* out) {
  const size_t index = static_cast<size_t>(head * plane.capacity + position);
  const int64_t n = plane.head_dim;
  const uint8_t* in = plane.data + index * KvRowBytes(plane.format, n);
  for (int64_t i = 0; i < n; ++i) {
    switch (plane.format) {
      case KvFormat::kF32:
        out[i] = reinterpret_cast<const float*>(in)[i];
        break;
      case KvFormat::kBF16:
        out[i] = BF16ToFloat(reinterpret_cast<const uint16_t*>(in)[i]);
        break;
      case KvFormat::kNibble:
      case KvFormat::kByte: {
        const int q = plane.format == KvFormat::kByte ? in[i]
                      : i % 2 == 0                    ? in[i / 2] & 15
                                                      : in[i / 2] >> 4;
        out[i] = static_cast<float>(q - plane.zero[index]) * plane.scale[index];
        break;
      }
    }
  }
}

void AttendOne(const AttentionArgs& args, int64_t token, int64_t head, int64_t kv_head) {
  const int64_t n = args.k.head_dim;
  const int64_t last = args.first_position + token;
  const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
  const float* q = args.q + (token * args.heads + head) * n;
  float* y = args.y + (token * args.heads + head) * n;
  float* weight = ThreadScratch<WeightTag, float>(static_cast<size_t>(last + 1));
  float* vector = ThreadScratch<VectorTag, float>(static_cast<size_t>(n));
  float top = -INFINITY;
  for (int64_t j = first; j <= last; ++j) {
    LoadVector(args.k, kv_head, j, vector);
    float dot = 0;
    for (int64_t i = 0; i < n; ++i) dot += q[i] * vector[i];
    weight[j] = dot * args.scale;
    top = std::max(top, weight[j]);
  }
  float sum = 0;
  for (int64_t j = first; j <= last; ++j) sum += weight[j] = std::exp(weight[j] - top);
  std::fill(y, y + n, 0.0f);
  for (int64_t j = first; j <= last; ++j) {
    LoadVector(args.v, kv_head, j, vector);
    for (int64_t i = 0; i < n; ++i) y[i] += weight[j] / sum * vector[i];
  }
}

int64_t TokenSlice(int64_t) noexcept { return 16; }

void Run(const AttentionArgs& args, int64_t kv_head, int64_t token_begin,
         int64_t token_end) noexcept {
  const int64_t group = args.heads / args.k.heads;
  for (int64_t t = token_begin; t < token_end; ++t) {
    for (int64_t g = 0; g < group; ++g) AttendOne(args, t, kv_head * group + g, kv_head);
  }
}

}  // namespace

extern const AttentionKernel kAttentionReference;
const AttentionKernel kAttentionReference = {TokenSlice, Run};

}  // namespace flatquant
