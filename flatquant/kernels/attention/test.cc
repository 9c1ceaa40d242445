#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/tile_attention.h"
#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"

namespace flatquant {

extern const AttentionKernel kAttentionEmulatedByteTiles;  // emulated_test.cc

namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

// The tile kernel on an emulated tile unit; few rows are another kernel's.
void FewRowsOfReference(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  KernelsOf<AttentionKernel>().back().kernel->few_rows(block, sums);
}
const AttentionKernel kEmulatedTiles = {TileTokenSlice, RunTileRows<EmulatedTiles>,
                                        FewRowsOfReference, kTwoTermsRounding};

template <typename Test>
void ForEachAttentionKernel(const Test& test) {
  ForEachKernel<AttentionKernel>(test);
  {
    SCOPED_TRACE("emulated tiles");
    test(kEmulatedTiles);
  }
  if (!CpuHas(GetCpuFeatures(), Isa::kAvx512Vnni)) return;
  SCOPED_TRACE("emulated tiles of bytes");
  test(kAttentionEmulatedByteTiles);
}

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

KvFormat RandomFormat(Rng& rng) {
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kNibble,
                                   KvFormat::kByte};
  return kFormats[rng.Below(4)];
}

// A cache filled with random vectors at positions [0, filled).
Plane RandomPlane(Rng& rng, KvFormat format, int64_t heads, int64_t head_dim, int64_t capacity,
                  int64_t filled, ThreadPool& pool) {
  Plane plane;
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

bool IsInteger(const KvPlane& plane) {
  return plane.format == KvFormat::kNibble || plane.format == KvFormat::kByte;
}

// Against the formula in double. With d the largest error of a score, weights are off
// by a factor of at most exp(2 d); the exponential adds 2^-22 and the sums over n keys
// n epsilon, relative to the values' magnitudes. A score's error is (head_dim + 3)
// epsilon times the sum of magnitudes of its products.
//
// Queries and weights may be rounded first, as the kernel says. Over integer caches zero
// points may be subtracted from the sums of products instead of from each code: then
// what is rounded (4 times) has the magnitude of codes and zero points.
void CheckAgainstFormula(const AttentionArgs& args, const Plane& k, const Plane& v,
                         const AttentionKernel& kernel) {
  const int64_t n = args.k.head_dim;
  const int64_t group = args.heads / args.k.heads;
  const double k_top = IsInteger(args.k) ? (1 << args.k.bits) - 1 : 0;
  const double v_top = IsInteger(args.v) ? (1 << args.v.bits) - 1 : 0;
  const bool is_nibble = args.k.format == KvFormat::kNibble && args.v.format == KvFormat::kNibble;
  const double fixed_rounding = is_nibble ? kernel.nibble_rounding : kernel.byte_rounding;
  Worst worst;
  for (int64_t t = 0; t < args.tokens; ++t) {
    const int64_t last = args.first_position + t;
    const int64_t first = args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0;
    for (int64_t h = 0; h < args.heads; ++h) {
      const int64_t g = h / group;
      const float* q = args.q + (t * args.heads + h) * n;
      double q_sum = 0, q_max = 0;
      for (int64_t i = 0; i < n; ++i) {
        q_sum += std::abs(q[i]);
        q_max = std::max<double>(q_max, std::abs(q[i]));
      }
      std::vector<double> weight;
      double score_error = 0;
      for (int64_t j = first; j <= last; ++j) {
        double score = 0, magnitude = 0, k_sum = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double element = k.at(g, j, i);
          score += q[i] * element * args.scale;
          magnitude += std::abs(q[i] * element);
          k_sum += std::abs(element);
        }
        weight.push_back(score);
        double error = static_cast<double>(n + 3) * magnitude;
        double rounding = kernel.rounding * magnitude;
        if (IsInteger(args.k)) {
          const double unit = k.scale[static_cast<size_t>(g * args.k.capacity + j)];
          error += 4 * 2 * k_top * unit * q_sum;
          rounding += fixed_rounding * q_max * k_sum;
        }
        score_error = std::max(score_error, (kEpsilon * error + rounding) * args.scale);
      }
      const double top = *std::max_element(weight.begin(), weight.end());
      double sum = 0;
      for (double& w : weight) sum += w = std::exp(w - top);
      double fixed_unit = 0, fixed_sum = 0;  // of the weights times V's scales
      if (IsInteger(args.v)) {
        for (int64_t j = first; j <= last; ++j) {
          const double w = weight[static_cast<size_t>(j - first)] / sum *
                           v.scale[static_cast<size_t>(g * args.v.capacity + j)];
          fixed_unit = std::max(fixed_unit, w);
          fixed_sum += w;
        }
      }
      const double keys = static_cast<double>(last - first + 1);
      const double fixed_error =
          v_top * (fixed_rounding * fixed_unit * keys + kEpsilon * 4 * 2 * fixed_sum) *
          (1 + 2 * score_error);
      for (int64_t i = 0; i < n; ++i) {
        double y = 0, magnitude = 0;
        for (int64_t j = first; j <= last; ++j) {
          const double term = weight[static_cast<size_t>(j - first)] / sum * v.at(g, j, i);
          y += term;
          magnitude += std::abs(term);
        }
        const double relative =
            2 * score_error + 2 * 0x1p-22 + 2 * (keys + 3) * kEpsilon + kernel.rounding;
        worst.Compare(args.y[(t * args.heads + h) * n + i], y, relative * magnitude + fixed_error,
                      t, h * n + i);
      }
    }
  }
  worst.Check();
}

// A sequence and its queries.
struct Case {
  Plane k;
  Plane v;
  AlignedBuffer<float> q;
  AlignedBuffer<float> y;
  AttentionArgs args;
};

Case RandomCase(Rng& rng, KvFormat k, KvFormat v, int64_t kv_heads, int64_t group, int64_t head_dim,
                int64_t tokens, int64_t first, int64_t spare, ThreadPool& pool) {
  Case c;
  const int64_t filled = first + tokens;
  c.k = RandomPlane(rng, k, kv_heads, head_dim, filled + spare, filled, pool);
  c.v = RandomPlane(rng, v, kv_heads, head_dim, filled + spare, filled, pool);
  c.q = RandomFloats(rng, tokens * kv_heads * group * head_dim, 2.0);
  c.y = AlignedBuffer<float>(c.q.size());
  c.args.q = c.q.data();
  c.args.tokens = tokens;
  c.args.first_position = first;
  c.args.heads = kv_heads * group;
  c.args.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  c.args.k = c.k.view;
  c.args.v = c.v.view;
  c.args.y = c.y.data();
  return c;
}

Case RandomCase(Rng& rng, int64_t kv_heads, int64_t group, int64_t head_dim, int64_t tokens,
                int64_t first, ThreadPool& pool) {
  const KvFormat k = RandomFormat(rng), v = RandomFormat(rng);
  return RandomCase(rng, k, v, kv_heads, group, head_dim, tokens, first, 3, pool);
}

std::string Describe(const AttentionArgs& args) {
  return std::to_string(args.tokens) + " tokens after " + std::to_string(args.first_position) +
         ", " + std::to_string(args.k.heads) + " of " + std::to_string(args.heads) +
         " heads, head_dim " + std::to_string(args.k.head_dim) + ", window " +
         std::to_string(args.window) + ", formats " +
         std::to_string(static_cast<int>(args.k.format)) +
         std::to_string(static_cast<int>(args.v.format));
}

TEST(AttentionTest, AgreesWithTheFormulaOnOddShapes) {
  ThreadPool pool(2);
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    ForEachSeed(100, [&](Rng& rng) {
      const int64_t kv_heads = RandomSize(rng, 3), group = RandomSize(rng, 9);
      const int64_t head_dim = RandomSize(rng, 70), tokens = RandomSize(rng, 120);
      Case c = RandomCase(rng, kv_heads, group, head_dim, tokens,
                          static_cast<int64_t>(rng.Below(150)), pool);
      c.args.window = rng.Below(2) == 0 ? 0 : RandomSize(rng, 130);
      SCOPED_TRACE(Describe(c.args));
      Attention(c.args, pool, &kernel);
      CheckAgainstFormula(c.args, c.k, c.v, kernel);
    });
  });
}

// Decoding: few tokens, contexts of several pieces, the head widths of real models.
TEST(AttentionTest, AgreesWithTheFormulaOverLongContexts) {
  constexpr int64_t kHeadDims[] = {48, 64, 80, 96, 128, 256};
  ThreadPool pool(2);
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    ForEachSeed(30, [&](Rng& rng) {
      const int64_t group = 1 + static_cast<int64_t>(rng.Below(8));
      const int64_t tokens = rng.Below(4) == 0 ? RandomSize(rng, 3) : 1;
      Case c =
          RandomCase(rng, 1 + static_cast<int64_t>(rng.Below(2)), group, kHeadDims[rng.Below(6)],
                     tokens, static_cast<int64_t>(rng.Below(1700)), pool);
      c.args.window = rng.Below(4) == 0 ? RandomSize(rng, 1200) : 0;
      SCOPED_TRACE(Describe(c.args));
      Attention(c.args, pool, &kernel);
      CheckAgainstFormula(c.args, c.k, c.v, kernel);
    });
  });
}

// What few rows over nibbles are cut into: rows, registers of vectors, groups of 4, 16, 64
// and 128 keys, pieces; the cache may end with the last key, and windows begin anywhere, so
// that rows of several tokens see none of a step's keys.
TEST(AttentionTest, AgreesWithTheFormulaForFewRowsOverNibbles) {
  constexpr int64_t kHeadDims[] = {64, 128, 192, 256};
  constexpr int64_t kLengths[] = {1, 3, 4, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 512, 513};
  ThreadPool pool(2);
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    ForEachSeed(60, [&](Rng& rng) {
      const int64_t group = 1 + static_cast<int64_t>(rng.Below(9));
      const int64_t tokens = rng.Below(2) == 0 ? 1 : RandomSize(rng, kAttentionFewRows / group);
      const int64_t length = kLengths[rng.Below(std::size(kLengths))] +
                             128 * static_cast<int64_t>(rng.Below(2) * rng.Below(6));
      Case c = RandomCase(rng, KvFormat::kNibble, KvFormat::kNibble, 2, group,
                          kHeadDims[rng.Below(4)], tokens, std::max<int64_t>(0, length - tokens),
                          /*spare=*/0, pool);
      c.args.window = rng.Below(3) == 0 ? RandomSize(rng, 300) : 0;
      SCOPED_TRACE(Describe(c.args));
      Attention(c.args, pool, &kernel);
      CheckAgainstFormula(c.args, c.k, c.v, kernel);
    });
  });
}

// How far a cache of nibbles in integers deviates, as a share of the result: far less than
// its bound, for its errors are independent, and less than the nibbles themselves do, whose
// step is 15^-1 of five deviations. fixed_point.h has the estimate.
double FixedPointDeviation(const AttentionKernel& kernel, int64_t tokens, KvFormat format) {
  ThreadPool pool(1);
  Rng rng(13);
  Case c = RandomCase(rng, format, format, 1, 4, 64, tokens, 300, 3, pool);
  const AlignedBuffer<float>& y = c.y;
  Attention(c.args, pool, &kernel);
  AlignedBuffer<float> expected(y.size());
  c.args.y = expected.data();
  Attention(c.args, pool, KernelsOf<AttentionKernel>().back().kernel);
  double errors = 0, squares = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    errors += std::pow(y[i] - expected[i], 2);
    squares += std::pow(expected[i], 2);
  }
  return std::sqrt(errors / squares);
}

TEST(AttentionTest, FixedPointDeviatesLittle) {
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    for (const int64_t tokens : {1, 70}) {
      const bool is_fixed = kernel.nibble_rounding > 0x1p-10;
      EXPECT_LT(FixedPointDeviation(kernel, tokens, KvFormat::kNibble), is_fixed ? 0.03 : 0x1p-14);
      EXPECT_LT(FixedPointDeviation(kernel, tokens, KvFormat::kByte), 0x1p-12);
    }
  });
}

// Sequences of a batch do not see each other, and neither batches nor threads change
// a bit of a result.
TEST(AttentionTest, BatchesAndThreadsChangeNothing) {
  ThreadPool one(1), three(3);
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    ForEachSeed(10, [&](Rng& rng) {
      std::vector<Case> cases;
      for (int64_t i = 0; i < 5; ++i) {
        const int64_t tokens = rng.Below(3) == 0 ? RandomSize(rng, 60) : 1;
        cases.push_back(
            RandomCase(rng, 2, 3, 64, tokens, static_cast<int64_t>(rng.Below(1500)), three));
      }
      std::vector<AttentionArgs> batch;
      for (Case& c : cases) batch.push_back(c.args);
      Attention(batch, three, &kernel);
      for (Case& c : cases) {
        AlignedBuffer<float> alone(c.y.size());
        AttentionArgs args = c.args;
        args.y = alone.data();
        Attention(args, one, &kernel);
        ASSERT_TRUE(std::equal(alone.begin(), alone.end(), c.y.begin())) << Describe(args);
      }
    });
  });
}

// Scores that grow from tile to tile make every tile rescale what came before;
// exp without the running maximum would overflow.
TEST(AttentionTest, GrowingScoresDoNotOverflow) {
  ThreadPool pool(1);
  ForEachAttentionKernel([&](const AttentionKernel& kernel) {
    Rng rng(11);
    const int64_t positions = 400;
    Plane k = RandomPlane(rng, KvFormat::kF32, 1, 16, positions, positions, pool);
    const Plane v = RandomPlane(rng, RandomFormat(rng), 1, 16, positions, positions, pool);
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
