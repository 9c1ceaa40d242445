#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

struct Plane {
  AlignedBuffer<uint8_t> data;
  AlignedBuffer<float> scale;
  AlignedBuffer<uint8_t> zero;
  KvPlane view;

  double at(int64_t head, int64_t position, int64_t i) const {
    const size_t vector = static_cast<size_t>(head * view.capacity + position);
    const uint8_t* row = data.data() + vector * KvRowBytes(view.format, view.head_dim);
    if (view.format == KvFormat::kF32) return reinterpret_cast<const float*>(row)[i];
    if (view.format == KvFormat::kBF16) {
      return BF16ToFloat(reinterpret_cast<const uint16_t*>(row)[i]);
    }
    const int q = view.format == KvFormat::kByte ? row[i]
                  : i % 2 == 0                   ? row[i / 2] & 15
                                                 : row[i / 2] >> 4;
    return (q - zero[vector]) * static_cast<double>(scale[vector]);
  }
};

// A cache filled with random vectors at positions [0, filled).
Plane RandomPlane(Rng& rng, int64_t heads, int64_t head_dim, int64_t capacity, int64_t filled,
                  ThreadPool& pool) {
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kNibble,
                                   KvFormat::kByte};
  Plane plane;
  const KvFormat format = kFormats[rng.Below(4)];
  const size_t vectors = static_cast<size_t>(heads * capacity);
  plane.data = AlignedBuffer<uint8_t>(vectors * KvRowBytes(format, head_dim));
  plane.scale = AlignedBuffer<float>(vectors);
  plane.zero = AlignedBuffer<uint8_t>(vectors);
  plane.view = {format,
                format == KvFormat::kNibble ? 4 : 8,
                heads,
                head_dim,
                capacity,
                plane.data.data(),
                plane.scale.data(),
                plane.zero.data()};
  const AlignedBuffer<float> x = RandomFloats(rng, filled * heads * head_dim);
  QuantizeKv({x.data(), filled, 0, 1, 1, plane.view}, pool);
  return plane;
}

// Against the formula in double. With d the largest error of a score, (head_dim +
// 3) epsilon times the sum of magnitudes of its products, weights are off by a
// factor of at most exp(2 d); the exponential adds 2^-22 and the sums over n keys
// n epsilon, relative to the values' magnitudes.
void CheckAgainstFormula(const AttentionArgs& args, const Plane& k, const Plane& v) {
  const int64_t n = args.k.head_dim;
  const int64_t group = args.heads / args.k.heads;
  Worst worst;
  for (int64_t t = 0; t < args.tokens; ++t) {
    const int64_t last = args.first_position + t;
    const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
    for (int64_t h = 0; h < args.heads; ++h) {
      const float* q = args.q + (t * args.heads + h) * n;
      std::vector<double> weight;
      double score_error = 0;
      for (int64_t j = first; j <= last; ++j) {
        double score = 0, magnitude = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double product = q[i] * k.at(h / group, j, i) * args.scale;
          score += product;
          magnitude += std::abs(product);
        }
        weight.push_back(score);
        score_error = std::max(score_error, static_cast<double>(n + 3) * kEpsilon * magnitude);
      }
      const double top = *std::max_element(weight.begin(), weight.end());
      double sum = 0;
      for (double& w : weight) sum += w = std::exp(w - top);
      for (int64_t i = 0; i < n; ++i) {
        double y = 0, magnitude = 0;
        for (int64_t j = first; j <= last; ++j) {
          const double term = weight[static_cast<size_t>(j - first)] / sum * v.at(h / group, j, i);
          y += term;
          magnitude += std::abs(term);
        }
        const double relative =
            2 * score_error + 2 * 0x1p-22 + 2 * static_cast<double>(last - first + 4) * kEpsilon;
        worst.Compare(args.y[(t * args.heads + h) * n + i], y, relative * magnitude, t, h * n + i);
      }
    }
  }
  worst.Check();
}

TEST(AttentionTest, AgreesWithTheFormulaOnOddShapes) {
  ThreadPool pool(2);
  ForEachKernel<AttentionKernel>([&](const AttentionKernel& kernel) {
    ForEachSeed(100, [&](Rng& rng) {
      const int64_t kv_heads = RandomSize(rng, 3), group = RandomSize(rng, 9);
      const int64_t head_dim = RandomSize(rng, 70);
      const int64_t tokens = RandomSize(rng, 120), first = static_cast<int64_t>(rng.Below(150));
      const int64_t filled = first + tokens;
      const Plane k = RandomPlane(rng, kv_heads, head_dim, filled + 3, filled, pool);
      const Plane v = RandomPlane(rng, kv_heads, head_dim, filled + 3, filled, pool);
      const int64_t heads = kv_heads * group;
      const AlignedBuffer<float> q = RandomFloats(rng, tokens * heads * head_dim, 2.0);
      AlignedBuffer<float> y(q.size());
      AttentionArgs args;
      args.q = q.data();
      args.tokens = tokens;
      args.first_position = first;
      args.heads = heads;
      args.window = rng.Below(2) == 0 ? 0 : RandomSize(rng, 130);
      args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
      args.k = k.view;
      args.v = v.view;
      args.y = y.data();
      SCOPED_TRACE(::testing::Message()
                   << "tokens " << tokens << " after " << first << ", " << kv_heads << " x "
                   << group << " heads of " << head_dim << ", window " << args.window
                   << ", formats " << static_cast<int>(k.view.format) << " "
                   << static_cast<int>(v.view.format));
      Attention(args, pool, &kernel);
      CheckAgainstFormula(args, k, v);
    });
  });
}

// Scores that grow from tile to tile make every tile rescale what came before;
// exp without the running maximum would overflow.
TEST(AttentionTest, GrowingScoresDoNotOverflow) {
  ThreadPool pool(1);
  ForEachKernel<AttentionKernel>([&](const AttentionKernel& kernel) {
    Rng rng(11);
    const int64_t positions = 400;
    Plane k, v;
    do k = RandomPlane(rng, 1, 16, positions, positions, pool);
    while (k.view.format != KvFormat::kF32);
    v = RandomPlane(rng, 1, 16, positions, positions, pool);
    float* keys = reinterpret_cast<float*>(k.data.data());
    for (int64_t j = 0; j < positions; ++j) {
      for (int64_t i = 0; i < 16; ++i) keys[j * 16 + i] = static_cast<float>(j) * 0.25f;
    }
    for (int64_t tokens : {int64_t{1}, positions}) {
      AlignedBuffer<float> q(static_cast<size_t>(tokens * 16));
      for (float& value : q) value = 1.0f;
      AlignedBuffer<float> y(q.size());
      AttentionArgs args{q.data(), tokens,  positions - tokens, 1, 0, 1.0f, k.view,
                         v.view,   y.data()};
      Attention(args, pool, &kernel);
      for (int64_t i = 0; i < 16; ++i) {
        // The last key's score leads by 4, then 8, ...: a geometric series.
        double sum = 0, expected = 0;
        for (int64_t j = 0; j < positions; ++j) {
          const double w = std::exp(4.0 * static_cast<double>(j - positions + 1));
          sum += w;
          expected += w * v.at(0, j, i);
        }
        EXPECT_NEAR(y[static_cast<size_t>((tokens - 1) * 16 + i)], expected / sum, 1e-5);
      }
    }
  });
}

}  // namespace
}  // namespace flatquant
