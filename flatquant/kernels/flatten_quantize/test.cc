#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"
#include "flatquant/kernels/kernel_testing.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;

int64_t StrideOf(int64_t columns) { return (columns + 63) / 64 * 64; }

// Channels with 1 to 4 pieces, some columns twice (as for a weight in two pieces).
std::vector<FlattenColumn> RandomColumns(Rng& rng, int64_t width) {
  std::vector<FlattenColumn> columns;
  for (int64_t c = 0; c < width; ++c) {
    if (rng.Below(3) != 0) continue;
    const auto pieces = static_cast<int32_t>(1 + rng.Below(4));
    const uint64_t copies = 1 + rng.Below(2);
    for (int32_t piece = 0; piece < pieces; ++piece) {
      for (uint64_t copy = piece == 0 ? 1 : 0; copy < copies; ++copy) {
        columns.push_back({static_cast<int32_t>(c), piece});
      }
    }
  }
  return columns;
}

std::vector<int8_t> Quantized(const FlattenQuantizeArgs& pattern, ThreadPool& pool) {
  FlattenQuantizeArgs args = pattern;
  args.code_stride = StrideOf(args.flattening->columns());
  AlignedBuffer<int8_t> codes(static_cast<size_t>(args.tokens * args.code_stride));
  AlignedBuffer<float> scales(static_cast<size_t>(args.tokens));
  for (int8_t& code : codes) code = 99;
  args.codes = codes.data();
  args.scales = scales.data();
  FlattenQuantize(args, pool);
  for (float scale : scales) EXPECT_EQ(scale, args.flattening->scale);
  for (int64_t t = 0; t < args.tokens; ++t) {
    for (int64_t c = args.flattening->columns(); c < args.code_stride; ++c) {
      EXPECT_EQ(codes[static_cast<size_t>(t * args.code_stride + c)], 0) << "padding";
    }
  }
  return {codes.begin(), codes.end()};
}

// Straight from the formula, by another route: the division in double, whose nearest
// float it takes as the kernels do.
int ExpectedCode(float x, float scale, int piece, int bits) {
  const int top = (1 << (bits - 1)) - 1;
  const auto quotient = static_cast<float>(static_cast<double>(x) / static_cast<double>(scale));
  const double q = std::clamp(std::nearbyint(static_cast<double>(quotient)), -1e6, 1e6);
  const double size = std::clamp(std::abs(q) - piece * top, 0.0, static_cast<double>(top));
  return static_cast<int>(q < 0 ? -size : size);
}

TEST(FlattenQuantizeTest, EveryCodeIsThatOfTheFormula) {
  ThreadPool pool(2);
  ForEachKernel<FlattenQuantizeKernel>([&](const FlattenQuantizeKernel& kernel) {
    ForEachSeed(80, [&](Rng& rng) {
      const int64_t width = RandomSize(rng, 700), tokens = RandomSize(rng, 40);
      const int bits = 2 + static_cast<int>(rng.Below(7));
      const auto scale = static_cast<float>(0.01 + rng.Uniform() * (bits < 5 ? 0.5 : 0.02));
      const std::vector<FlattenColumn> columns = RandomColumns(rng, width);
      const Flattening flattening = MakeFlattening(width, bits, scale, columns, &kernel);
      AlignedBuffer<float> x = RandomFloats(rng, tokens * width);
      // Half-way cases, and what no grid reaches.
      x[0] = 2.5f * scale;
      x[x.size() / 2] = -3.5f * scale;
      x[x.size() - 1] = rng.Below(2) == 0 ? 1e30f : -1e30f;
      FlattenQuantizeArgs args;
      args.x = x.data();
      args.tokens = tokens;
      args.flattening = &flattening;
      const std::vector<int8_t> codes = Quantized(args, pool);
      const int64_t stride = StrideOf(flattening.columns());
      for (int64_t t = 0; t < tokens; ++t) {
        const float* row = x.data() + t * width;
        const int8_t* got = codes.data() + t * stride;
        for (int64_t c = 0; c < width; ++c) {
          ASSERT_EQ(got[c], ExpectedCode(row[c], scale, 0, bits)) << t << ", " << c;
        }
        for (size_t i = 0; i < columns.size(); ++i) {
          ASSERT_EQ(got[width + static_cast<int64_t>(i)],
                    ExpectedCode(row[columns[i].channel], scale, columns[i].piece, bits))
              << t << ", extra " << i;
        }
      }
    });
  });
}

// With e pieces a channel's grid is e times as wide, and nothing else changes: integer
// products with weights that repeat the channel's equal those of the wide integer.
TEST(FlattenQuantizeTest, ProductsEqualThoseOfTheWidenedGrid) {
  ThreadPool pool(1);
  ForEachKernel<FlattenQuantizeKernel>([&](const FlattenQuantizeKernel& kernel) {
    ForEachSeed(40, [&](Rng& rng) {
      const int64_t width = RandomSize(rng, 200);
      const int bits = rng.Below(2) == 0 ? 4 : 8;
      const int top = (1 << (bits - 1)) - 1;
      std::vector<FlattenColumn> columns;
      std::vector<int> pieces(static_cast<size_t>(width));
      std::vector<int> weight;
      for (int64_t c = 0; c < width; ++c) weight.push_back(static_cast<int>(rng.Below(15)) - 7);
      for (int64_t c = 0; c < width; ++c) {
        pieces[static_cast<size_t>(c)] = 1 + static_cast<int>(rng.Below(3));
        for (int piece = 1; piece < pieces[static_cast<size_t>(c)]; ++piece) {
          columns.push_back({static_cast<int32_t>(c), piece});
          weight.push_back(weight[static_cast<size_t>(c)]);
        }
      }
      const float scale = bits == 4 ? 0.1f : 0.006f;
      const Flattening flattening = MakeFlattening(width, bits, scale, columns, &kernel);
      const AlignedBuffer<float> x = RandomFloats(rng, width);
      FlattenQuantizeArgs args;
      args.x = x.data();
      args.tokens = 1;
      args.flattening = &flattening;
      const std::vector<int8_t> codes = Quantized(args, pool);
      int64_t flattened = 0, widened = 0;
      for (size_t c = 0; c < weight.size(); ++c) flattened += codes[c] * weight[c];
      for (size_t c = 0; c < pieces.size(); ++c) {
        const double limit = pieces[c] * top;
        widened += static_cast<int64_t>(std::clamp(
                       std::nearbyint(static_cast<double>(x[c] / scale)), -limit, limit)) *
                   weight[c];
      }
      ASSERT_EQ(flattened, widened);
    });
  });
}

// The stages before a site give what the operations alone give.
TEST(FlattenQuantizeTest, NormAndSwigluComeFirst) {
  ThreadPool pool(2);
  ForEachKernel<FlattenQuantizeKernel>([&](const FlattenQuantizeKernel& kernel) {
    Rng rng(3);
    const int64_t width = 77, tokens = 130;
    const AlignedBuffer<float> x = RandomFloats(rng, tokens * width);
    const AlignedBuffer<float> up = RandomFloats(rng, tokens * width);
    const FlattenColumn columns[] = {{3, 1}, {3, 2}, {76, 1}};
    const Flattening flattening = MakeFlattening(width, 4, 0.1f, columns, &kernel);
    AlignedBuffer<float> y(x.size());
    FlattenQuantizeArgs args;
    args.tokens = tokens;
    args.flattening = &flattening;
    args.x = x.data();

    kernel.rms_norm->run({x.data(), up.data(), 1e-5f, tokens, width, y.data()}, 0, tokens);
    args.input.norm_weight = up.data();
    args.input.norm_eps = 1e-5f;
    const std::vector<int8_t> normed = Quantized(args, pool);
    args.input = {};
    args.x = y.data();
    EXPECT_EQ(normed, Quantized(args, pool));

    kernel.swiglu->run({x.data(), up.data(), tokens, width, y.data()}, 0, tokens);
    const std::vector<int8_t> plain = Quantized(args, pool);
    args.x = x.data();
    args.input.up = up.data();
    EXPECT_EQ(plain, Quantized(args, pool));
    ThreadPool five(5);
    EXPECT_EQ(plain, Quantized(args, five));
  });
}

TEST(FlattenQuantizeTest, ExtremeScalesAndNoNumbers) {
  ThreadPool pool(1);
  ForEachKernel<FlattenQuantizeKernel>([&](const FlattenQuantizeKernel& kernel) {
    const float inf = std::numeric_limits<float>::infinity();
    const FlattenColumn columns[] = {{0, 1}, {1, 1}, {2, 1}};
    for (const float scale : {1e-38f, 1e-20f, 1e20f, 1e33f}) {
      const Flattening flattening = MakeFlattening(4, 4, scale, columns, &kernel);
      const float x[4] = {inf, -inf, std::numeric_limits<float>::quiet_NaN(), 5 * scale};
      FlattenQuantizeArgs args;
      args.x = x;
      args.tokens = 1;
      args.flattening = &flattening;
      const std::vector<int8_t> codes = Quantized(args, pool);
      const std::vector<int8_t> expected = {7, -7, -7, 5, 7, -7, -7};
      EXPECT_EQ(std::vector<int8_t>(codes.begin(), codes.begin() + 7), expected) << scale;
    }
  });
}

}  // namespace
}  // namespace flatquant
