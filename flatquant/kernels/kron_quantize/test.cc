#include <gtest/gtest.h>

#include <vector>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/kron_quantize/kron_problem.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/kron_quantize/quantize_lanes.h"
#include "flatquant/kernels/kron_quantize/tile_transform.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx2;
extern const SwigluKernel kSwigluX86Avx2;

namespace {

using kernel_testing::Expected;
using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::InputStage;
using kernel_testing::kEpsilon;
using kernel_testing::KronProblem;
using kernel_testing::KronResult;
using kernel_testing::MakeProblem;
using kernel_testing::RandomProblem;
using kernel_testing::RelativeTolerance;
using kernel_testing::Worst;

// The tile kernel as it is, on an emulated tile unit.
const KronQuantizeKernel kEmulatedTiles = {.reads_tiles = true,
                                           .rms_norm = &kRmsNormX86Avx2,
                                           .swiglu = &kSwigluX86Avx2,
                                           .transform = TransformTiles<EmulatedTiles>,
                                           .quantize = QuantizeLanes};

template <typename Test>
void ForEachKronKernel(const Test& test) {
  ForEachKernel<KronQuantizeKernel>(test);
  SCOPED_TRACE("emulated tiles");
  test(kEmulatedTiles);
}

void CheckFloats(const KronProblem& p, ThreadPool& pool) {
  const size_t width = static_cast<size_t>(p.width());
  AlignedBuffer<float> y(static_cast<size_t>(p.tokens) * width);
  for (float& value : y) value = NAN;
  KronQuantizeArgs args = p.Args();
  args.y = y.data();
  KronQuantize(args, pool);
  Worst worst;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const KronResult expected = Expected(p, t);
    for (size_t c = 0; c < width; ++c) {
      worst.Compare(y[static_cast<size_t>(t) * width + c], expected.y[c],
                    RelativeTolerance(p, 16) * expected.magnitude[c] + 1e-36, t,
                    static_cast<int64_t>(c));
    }
  }
  worst.Check();
}

// A code is right when it is a nearest one (within the transform's rounding), or
// the end of the grid for a value beyond it.
void CheckCodes(const KronProblem& p, int bits, const std::vector<KronClip>& clips,
                ThreadPool& pool) {
  const int64_t clip_count = static_cast<int64_t>(clips.size());
  const int64_t stride = (p.width() + 63) / 64 * 64;
  AlignedBuffer<int8_t> codes(static_cast<size_t>(clip_count * p.tokens * stride));
  for (int8_t& code : codes) code = 99;
  AlignedBuffer<float> scales(static_cast<size_t>(clip_count * p.tokens));
  KronQuantizeArgs args = p.Args();
  args.bits = bits;
  args.clips = clips.data();
  args.clip_count = clip_count;
  args.codes = codes.data();
  args.code_stride = stride;
  args.scales = scales.data();
  KronQuantize(args, pool);
  const double top = (1 << (bits - 1)) - 1;
  Worst scale_worst, code_worst;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const KronResult result = Expected(p, t);
    const double hi = std::max(0.0, *std::max_element(result.y.begin(), result.y.end()));
    const double lo = std::min(0.0, *std::min_element(result.y.begin(), result.y.end()));
    const double largest = *std::max_element(result.magnitude.begin(), result.magnitude.end());
    for (size_t k = 0; k < clips.size(); ++k) {
      const size_t index = k * static_cast<size_t>(p.tokens) + static_cast<size_t>(t);
      double expected = std::max(clips[k].max * hi, -clips[k].min * lo) / top;
      if (expected == 0) expected = 1;
      const double scale = scales[index];
      scale_worst.Compare(scale, expected,
                          RelativeTolerance(p, bits) * largest / top + 3 * kEpsilon * expected,
                          static_cast<int64_t>(k), t);
      const int8_t* row = codes.data() + index * static_cast<size_t>(stride);
      for (size_t c = 0; c < result.y.size(); ++c) {
        const double target = std::min(std::max(result.y[c] / scale, -top - 1), top);
        const double tolerance =
            RelativeTolerance(p, bits) * result.magnitude[c] + kEpsilon * std::abs(result.y[c]);
        code_worst.Compare(row[c], target, 0.5 + tolerance / scale, t, static_cast<int64_t>(c));
      }
      for (int64_t c = p.width(); c < stride; ++c) EXPECT_EQ(row[c], 0) << "padding";
    }
  }
  scale_worst.Check();
  code_worst.Check();
}

TEST(KronQuantizeTest, FloatOutputAgreesWithTheFormula) {
  ThreadPool pool(2);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    ForEachSeed(60, [&](Rng& rng) { CheckFloats(RandomProblem(rng, kernel), pool); });
  });
}

TEST(KronQuantizeTest, CodesAreNearestForEveryClip) {
  ThreadPool pool(2);
  const std::vector<KronClip> all = {{1.0f, 1.0f}, {0.7f, 0.9f}, {0.9f, 0.4f}};
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    ForEachSeed(60, [&](Rng& rng) {
      const KronProblem p = RandomProblem(rng, kernel);
      const int bits = 2 + static_cast<int>(rng.Below(7));
      const std::vector<KronClip> clips(all.begin(), all.begin() + 1 + rng.Below(3));
      CheckCodes(p, bits, clips, pool);
    });
  });
}

// Sites of real models, and what is awkward: factors that are no multiple of any
// vector, a prime width's single factor, tokens of many tasks.
TEST(KronQuantizeTest, NamedShapes) {
  struct Shape {
    int64_t left, right, tokens;
  };
  const Shape shapes[] = {{32, 64, 5}, {64, 88, 2}, {86, 128, 1}, {16, 86, 4},
                          {12, 20, 3}, {1, 251, 9}, {1, 64, 300}, {3, 1, 50}};
  ThreadPool pool(2);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    Rng rng(7);
    for (const Shape& shape : shapes) {
      SCOPED_TRACE(std::to_string(shape.left) + " x " + std::to_string(shape.right));
      for (const bool has_right : {true, false}) {
        KronProblem p = MakeProblem(rng, shape.left, shape.right, shape.tokens, InputStage::kNone);
        p.has_right = has_right;
        Pack(p, kernel);
        CheckFloats(p, pool);
        CheckCodes(p, 4, {{0.9f, 0.8f}}, pool);
      }
    }
  });
}

// How far a tile product deviates, as a share of the result: far less than its bound,
// for its errors are independent.
double TileDeviation(int bits) {
  Rng rng(3);
  KronProblem p = MakeProblem(rng, 32, 64, 4, InputStage::kNone);
  Pack(p, kEmulatedTiles);
  const size_t n = static_cast<size_t>(p.tokens * p.width());
  AlignedBuffer<float> half(n), y(n);
  AlignedBuffer<uint16_t> high(n), low(n);
  KronScratch memory;
  memory.stride = 64;
  memory.half = half.data();
  memory.high = high.data();
  memory.low = low.data();
  KronAhead ahead;
  memory.ahead = &ahead;
  kEmulatedTiles.transform(p.transform, p.x.data(), p.tokens, bits, memory, y.data());
  double errors = 0, squares = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const KronResult expected = Expected(p, t);
    for (size_t c = 0; c < expected.y.size(); ++c) {
      errors += std::pow(y[static_cast<size_t>(t * p.width()) + c] - expected.y[c], 2);
      squares += std::pow(expected.y[c], 2);
    }
  }
  return std::sqrt(errors / squares);
}

TEST(KronQuantizeTest, TwoTermsKeepSixteenBits) {
  EXPECT_LT(TileDeviation(16), 0x1p-16);
  EXPECT_LT(TileDeviation(5), 0x1p-16);
}

// What kOneTermBits says of it.
TEST(KronQuantizeTest, OneTermDeviatesLessThanAFewBitsRound) {
  EXPECT_LT(TileDeviation(4), 0x1p-8);
  EXPECT_GT(TileDeviation(4), 0x1p-10) << "not one term";
}

// The mean square of what codes of 4 bits miss the exact result by.
double CodeError(KronProblem& p, const KronQuantizeKernel& kernel, ThreadPool& pool) {
  Pack(p, kernel);
  const size_t width = static_cast<size_t>(p.width());
  const KronClip clip;
  AlignedBuffer<int8_t> codes(static_cast<size_t>(p.tokens) * width);
  AlignedBuffer<float> scales(static_cast<size_t>(p.tokens));
  KronQuantizeArgs args = p.Args();
  args.bits = 4;
  args.clips = &clip;
  args.clip_count = 1;
  args.codes = codes.data();
  args.code_stride = p.width();
  args.scales = scales.data();
  KronQuantize(args, pool);
  double squares = 0;
  for (int64_t t = 0; t < p.tokens; ++t) {
    const KronResult exact = Expected(p, t);
    for (size_t c = 0; c < width; ++c) {
      const size_t token = static_cast<size_t>(t);
      squares += std::pow(double{scales[token]} * codes[token * width + c] - exact.y[c], 2);
    }
  }
  return squares / static_cast<double>(codes.size());
}

// What one term (kOneTermBits) costs where it counts, also where a channel is fifty times
// as large as the others, as a network's outliers are. Such tokens are one pattern, a row of
// either matrix: only other matrices make another sample.
TEST(KronQuantizeTest, NoKernelAddsToTheErrorOfFourBits) {
  constexpr int kSamples = 40;
  constexpr int64_t kTokens = 2;
  ThreadPool pool(2);
  const KronQuantizeKernel& reference = *KernelsOf<KronQuantizeKernel>().back().kernel;
  for (const float outlier : {1.0f, 50.0f}) {
    SCOPED_TRACE("outlier " + std::to_string(outlier));
    ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
      Rng rng(13);
      double ratios = 0;
      for (int i = 0; i < kSamples; ++i) {
        KronProblem p = MakeProblem(rng, 32, 64, kTokens, InputStage::kNone);
        for (int64_t t = 0; t < kTokens; ++t) {
          p.x[static_cast<size_t>(t * p.width()) + 5] *= outlier;
        }
        ratios += CodeError(p, kernel, pool) / CodeError(p, reference, pool);
      }
      // A thousandth, and two of the samples' errors; two bits less in X and X right alone
      // would make it 1.003.
      EXPECT_LT(ratios / kSamples, 1.002);
    });
  }
}

TEST(KronQuantizeTest, HugeAndSmallTokens) {
  ThreadPool pool(1);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    Rng rng(5);
    for (const double deviation : {1e30, 1e-25}) {
      KronProblem p = MakeProblem(rng, 12, 20, 3, InputStage::kNone, deviation);
      Pack(p, kernel);
      CheckFloats(p, pool);
      CheckCodes(p, 4, {{1, 1}}, pool);
      p.has_left = p.has_right = false;
      Pack(p, kernel);
      for (float& x : p.x) x *= deviation > 1 ? 1e7f : 1e-8f;  // past the reciprocal's range
      CheckCodes(p, 4, {{1, 1}}, pool);
      CheckCodes(p, 8, {{1, 1}}, pool);
    }
  });
}

TEST(KronQuantizeTest, NoTokensAndTokensOfZeros) {
  ThreadPool pool(2);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    for (const InputStage stage : {InputStage::kNone, InputStage::kNorm, InputStage::kSwiglu}) {
      for (const int64_t tokens : {0, 3}) {
        Rng rng(9);
        KronProblem p = MakeProblem(rng, 4, 24, tokens, stage, 0.0);
        Pack(p, kernel);
        CheckFloats(p, pool);
        CheckCodes(p, 4, {{1, 1}, {0.5f, 0.5f}}, pool);
      }
    }
  });
}

TEST(KronQuantizeTest, ATokenDependsOnNoOther) {
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    Rng rng(11);
    KronProblem p = MakeProblem(rng, 20, 28, 40, InputStage::kNorm);
    Pack(p, kernel);
    const size_t n = static_cast<size_t>(p.tokens * p.width());
    AlignedBuffer<float> together(n), alone(n);
    ThreadPool pool(3);
    KronQuantizeArgs args = p.Args();
    args.y = together.data();
    KronQuantize(args, pool);
    args.tokens = 1;
    for (int64_t t = 0; t < p.tokens; ++t) {
      args.x = p.x.data() + t * p.width();
      args.y = alone.data() + t * p.width();
      KronQuantize(args, pool);
    }
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(together[i], alone[i]) << i;
  });
}

TEST(KronQuantizeTest, IdentityFactorsAreDropped) {
  AlignedBuffer<float> identity(9), other(9);
  for (size_t i = 0; i < 3; ++i) identity[i * 4] = other[i * 4] = 1.0f;
  other[1] = 1e-6f;
  const auto bytes = [](const AlignedBuffer<float>& floats) {
    return reinterpret_cast<const std::byte*>(floats.data());
  };
  EXPECT_TRUE(PackKronTransform(3, bytes(identity), 3, bytes(identity)).is_identity());
  EXPECT_GT(PackKronTransform(3, bytes(other), 3, bytes(identity)).left.size(), 0u);
}

// Without a transform every step is one rounded operation: the result is exact.
TEST(KronQuantizeTest, RoundsHalfToEvenAndSurvivesZeros) {
  ThreadPool pool(1);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    const KronTransform identity = PackKronTransform(1, nullptr, 8, nullptr, &kernel);
    const float x[] = {7, 0.5f, 1.5f, -0.5f, -2.5f, -7, 6.5f, 3,  //
                       0, 0,    0,    0,     0,     0,  0,    0};
    const KronClip clip;
    int8_t codes[128];
    float scales[2];
    KronQuantizeArgs args;
    args.x = x;
    args.tokens = 2;
    args.transform = &identity;
    args.bits = 4;
    args.clips = &clip;
    args.clip_count = 1;
    args.codes = codes;
    args.code_stride = 64;
    args.scales = scales;
    KronQuantize(args, pool);
    EXPECT_EQ(scales[0], 1.0f);
    EXPECT_EQ(scales[1], 1.0f);
    const int8_t expected[] = {7, 0, 2, 0, -2, -7, 6, 3};
    for (int i = 0; i < 8; ++i) EXPECT_EQ(codes[i], expected[i]) << i;
    for (int i = 8; i < 128; ++i) EXPECT_EQ(codes[i], 0) << i;
  });
}

// The kernels divide by multiplying; they must round as division does, ties included.
TEST(KronQuantizeTest, CodesAreThoseOfDivision) {
  ThreadPool pool(1);
  ForEachKronKernel([&](const KronQuantizeKernel& kernel) {
    ForEachSeed(40, [&](Rng& rng) {
      constexpr int64_t kWidth = 203;
      const KronTransform identity = PackKronTransform(1, nullptr, kWidth, nullptr, &kernel);
      AlignedBuffer<float> x = kernel_testing::RandomFloats(rng, kWidth);
      const float scale = static_cast<float>(std::exp(4 * rng.Normal()));
      for (float& value : x) {  // at ties, and a rounding beside them
        value = (std::nearbyint(3 * value) + 0.5f) * scale;
        if (rng.Below(3) == 0) value = std::nextafter(value, 0.0f);
      }
      const KronClip clip;
      AlignedBuffer<int8_t> codes(256);
      float chosen;
      KronQuantizeArgs args;
      args.x = x.data();
      args.tokens = 1;
      args.transform = &identity;
      args.bits = 2 + static_cast<int>(rng.Below(7));
      args.clips = &clip;
      args.clip_count = 1;
      args.codes = codes.data();
      args.code_stride = 256;
      args.scales = &chosen;
      KronQuantize(args, pool);
      const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
      for (size_t c = 0; c < kWidth; ++c) {
        const float q = std::clamp(std::nearbyint(x[c] / chosen), -top - 1, top);
        ASSERT_EQ(codes[c], static_cast<int>(q)) << c;
      }
    });
  });
}

}  // namespace
}  // namespace flatquant
