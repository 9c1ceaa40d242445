#include <gtest/gtest.h>

#include <vector>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

const std::byte* Bytes(const AlignedBuffer<float>& floats) {
  return reinterpret_cast<const std::byte*>(floats.data());
}

struct Problem {
  int64_t left_size, right_size, tokens;
  AlignedBuffer<float> left, right, x;
  bool has_left, has_right;
  KronTransform transform;

  int64_t width() const { return left_size * right_size; }
};

Problem RandomProblem(Rng& rng, const KronQuantizeKernel& kernel) {
  Problem p;
  p.left_size = RandomSize(rng, 20);
  p.right_size = RandomSize(rng, 70);
  p.tokens = RandomSize(rng, 40);
  p.left = RandomFloats(rng, p.left_size * p.left_size);
  p.right = RandomFloats(rng, p.right_size * p.right_size);
  p.x = RandomFloats(rng, p.tokens * p.width());
  p.has_left = rng.Below(4) != 0;
  p.has_right = rng.Below(4) != 0;
  p.transform = PackKronTransform(p.left_size, p.has_left ? Bytes(p.left) : nullptr, p.right_size,
                                  p.has_right ? Bytes(p.right) : nullptr, &kernel);
  return p;
}

// left^T X right of one token in double, and the sum of magnitudes of its terms.
void Expected(const Problem& p, int64_t token, std::vector<double>& y,
              std::vector<double>& magnitude) {
  const int64_t L = p.left_size, R = p.right_size;
  y.assign(static_cast<size_t>(L * R), 0);
  magnitude.assign(static_cast<size_t>(L * R), 0);
  std::vector<double> half(y), half_magnitude(y);
  for (int64_t a = 0; a < L; ++a) {
    for (int64_t b = 0; b < R; ++b) {
      const double x = p.x[static_cast<size_t>((token * L + a) * R + b)];
      for (int64_t j = 0; j < R; ++j) {
        const double m =
            p.has_right ? p.right[static_cast<size_t>(b * R + j)] : static_cast<double>(b == j);
        half[static_cast<size_t>(a * R + j)] += x * m;
        half_magnitude[static_cast<size_t>(a * R + j)] += std::abs(x * m);
      }
    }
  }
  for (int64_t a = 0; a < L; ++a) {
    for (int64_t i = 0; i < L; ++i) {
      const double m =
          p.has_left ? p.left[static_cast<size_t>(a * L + i)] : static_cast<double>(a == i);
      for (int64_t j = 0; j < R; ++j) {
        y[static_cast<size_t>(i * R + j)] += m * half[static_cast<size_t>(a * R + j)];
        magnitude[static_cast<size_t>(i * R + j)] +=
            std::abs(m) * half_magnitude[static_cast<size_t>(a * R + j)];
      }
    }
  }
}

// Two nested sums of R and of L terms: (L + R) epsilon of the magnitudes.
double Tolerance(const Problem& p, double magnitude) {
  return kEpsilon * static_cast<double>(p.left_size + p.right_size) * magnitude;
}

TEST(KronQuantizeTest, FloatOutputAgreesWithTheFormula) {
  ThreadPool pool(2);
  ForEachKernel<KronQuantizeKernel>([&](const KronQuantizeKernel& kernel) {
    ForEachSeed(80, [&](Rng& rng) {
      const Problem p = RandomProblem(rng, kernel);
      AlignedBuffer<float> y(static_cast<size_t>(p.tokens * p.width()));
      KronQuantizeArgs args;
      args.x = p.x.data();
      args.tokens = p.tokens;
      args.transform = &p.transform;
      args.y = y.data();
      KronQuantize(args, pool);
      Worst worst;
      std::vector<double> expected, magnitude;
      for (int64_t t = 0; t < p.tokens; ++t) {
        Expected(p, t, expected, magnitude);
        for (int64_t c = 0; c < p.width(); ++c) {
          const size_t i = static_cast<size_t>(c);
          worst.Compare(y[static_cast<size_t>(t * p.width() + c)], expected[i],
                        Tolerance(p, magnitude[i]), t, c);
        }
      }
      worst.Check();
    });
  });
}

// A code is right when it is a nearest one (within the transform's rounding), or
// the end of the grid for a value beyond it.
TEST(KronQuantizeTest, CodesAreNearestForEveryClip) {
  ThreadPool pool(2);
  ForEachKernel<KronQuantizeKernel>([&](const KronQuantizeKernel& kernel) {
    ForEachSeed(80, [&](Rng& rng) {
      const Problem p = RandomProblem(rng, kernel);
      const KronClip clips[] = {{1.0f, 1.0f}, {0.7f, 0.9f}, {0.9f, 0.4f}};
      const int64_t clip_count = 1 + static_cast<int64_t>(rng.Below(3));
      const int bits = 2 + static_cast<int>(rng.Below(7));
      const int64_t stride = (p.width() + 63) / 64 * 64;
      AlignedBuffer<int8_t> codes(static_cast<size_t>(clip_count * p.tokens * stride));
      for (int8_t& code : codes) code = 99;
      AlignedBuffer<float> scales(static_cast<size_t>(clip_count * p.tokens));
      KronQuantizeArgs args;
      args.x = p.x.data();
      args.tokens = p.tokens;
      args.transform = &p.transform;
      args.bits = bits;
      args.clips = clips;
      args.clip_count = clip_count;
      args.codes = codes.data();
      args.code_stride = stride;
      args.scales = scales.data();
      KronQuantize(args, pool);
      const double top = (1 << (bits - 1)) - 1;
      Worst scale_worst, code_worst;
      std::vector<double> y, magnitude;
      for (int64_t t = 0; t < p.tokens; ++t) {
        Expected(p, t, y, magnitude);
        double hi = 0, lo = 0, largest = 0;
        for (size_t i = 0; i < y.size(); ++i) {
          hi = std::max(hi, y[i]);
          lo = std::min(lo, y[i]);
          largest = std::max(largest, magnitude[i]);
        }
        for (int64_t k = 0; k < clip_count; ++k) {
          const double expected = std::max(clips[k].max * hi, -clips[k].min * lo) / top;
          const double scale = scales[static_cast<size_t>(k * p.tokens + t)];
          scale_worst.Compare(scale, expected, Tolerance(p, largest) + 3 * kEpsilon * expected, k,
                              t);
          const int8_t* row = codes.data() + (k * p.tokens + t) * stride;
          for (int64_t c = 0; c < p.width(); ++c) {
            const size_t i = static_cast<size_t>(c);
            const double target = std::min(std::max(y[i] / scale, -top - 1), top);
            code_worst.Compare(
                row[c], target,
                0.5 + (Tolerance(p, magnitude[i]) + kEpsilon * std::abs(y[i])) / scale, t, c);
          }
          for (int64_t c = p.width(); c < stride; ++c) EXPECT_EQ(row[c], 0) << "padding";
        }
      }
      scale_worst.Check();
      code_worst.Check();
    });
  });
}

// Without a transform every step is one rounded operation: the result is exact.
TEST(KronQuantizeTest, RoundsHalfToEvenAndSurvivesZeros) {
  ThreadPool pool(1);
  const KronTransform identity = PackKronTransform(1, nullptr, 8, nullptr);
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
}

}  // namespace
}  // namespace flatquant
