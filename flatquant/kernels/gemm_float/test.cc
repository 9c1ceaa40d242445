#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/gemm_float/gemv.h"
#include "flatquant/kernels/kernel_testing.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

// A weight matrix in one of the canonical forms, and its exact values.
struct Weights {
  int bits = 16;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<std::byte> bytes;
  AlignedBuffer<float> scale, bias;
  std::vector<double> values;  // without the scale

  FloatWeightsSource source(bool has_bias) const {
    return {bits,
            dtype,
            rows,
            cols,
            bytes.data(),
            bits <= 8 ? reinterpret_cast<const std::byte*>(scale.data()) : nullptr,
            has_bias ? reinterpret_cast<const std::byte*>(bias.data()) : nullptr};
  }
};

template <typename T>
void Append(std::vector<std::byte>& bytes, T value) {
  const size_t end = bytes.size();
  bytes.resize(end + sizeof(T));
  std::memcpy(bytes.data() + end, &value, sizeof(T));
}

Weights RandomWeights(Rng& rng, int bits, DType dtype, int64_t rows, int64_t cols) {
  Weights w{bits, dtype, rows, cols, {}, RandomFloats(rng, rows), RandomFloats(rng, rows), {}};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      if (bits <= 8) {
        const int64_t range = int64_t{1} << bits;
        const int64_t q = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(range))) - range / 2;
        w.values.push_back(static_cast<double>(q));
        if (bits > 4) {
          Append(w.bytes, static_cast<int8_t>(q));
        } else if (c % 2 == 0) {
          Append(w.bytes, static_cast<uint8_t>(q & 15));
        } else {
          w.bytes.back() |= static_cast<std::byte>((q & 15) << 4);
        }
        continue;
      }
      const float value = static_cast<float>(rng.Normal());
      if (dtype == DType::kF64) {
        Append(w.bytes, static_cast<double>(value));
        w.values.push_back(value);
      } else if (dtype == DType::kF32) {
        Append(w.bytes, value);
        w.values.push_back(value);
      } else {
        const uint16_t half = dtype == DType::kBF16 ? FloatToBF16(value) : FloatToF16(value);
        Append(w.bytes, half);
        w.values.push_back(dtype == DType::kBF16 ? BF16ToFloat(half) : F16ToFloat(half));
      }
    }
  }
  return w;
}

double Rounded(double value, GemmFloatMath math) {
  if (math == GemmFloatMath::kF32) return value;
  return BF16ToFloat(FloatToBF16(static_cast<float>(value)));
}

// Against the formula in double. A float sum of n products in any order is off by
// at most about n epsilon times the sum of magnitudes; scale and bias add three
// roundings.
// multiply(args) computes them.
template <typename Multiply>
void CheckAgainstFormula(Rng& rng, const Weights& w, int64_t tokens, GemmFloatMath math,
                         ThreadPool& pool, const Multiply& multiply) {
  const AlignedBuffer<float> x = RandomFloats(rng, tokens * w.cols);
  const bool has_bias = rng.Below(2) == 0;
  const int64_t begin = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(w.rows)));
  const int64_t end =
      begin + 1 + static_cast<int64_t>(rng.Below(static_cast<uint64_t>(w.rows - begin)));
  const FloatWeights loaded = LoadFloatWeights(w.source(has_bias), math, pool);
  const int64_t y_stride = end - begin + 2;
  AlignedBuffer<float> y(static_cast<size_t>(tokens * y_stride));
  multiply(GemmFloatArgs{x.data(), tokens, &loaded, begin, end, y.data(), y_stride});
  Worst worst;
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t r = begin; r < end; ++r) {
      double sum = 0, magnitude = 0;
      for (int64_t c = 0; c < w.cols; ++c) {
        const double product = Rounded(x[static_cast<size_t>(m * w.cols + c)], math) *
                               Rounded(w.values[static_cast<size_t>(r * w.cols + c)], math);
        sum += product;
        magnitude += std::abs(product);
      }
      const double scale = w.bits <= 8 ? w.scale[static_cast<size_t>(r)] : 1.0;
      const double bias = has_bias ? w.bias[static_cast<size_t>(r)] : 0.0;
      const double tolerance =
          kEpsilon *
          (static_cast<double>(w.cols + 4) * magnitude * std::abs(scale) + 2 * std::abs(bias));
      worst.Compare(y[static_cast<size_t>(m * y_stride + r - begin)], sum * scale + bias, tolerance,
                    m, r);
    }
    EXPECT_EQ(y[static_cast<size_t>((m + 1) * y_stride - 1)], 0) << "written past the rows";
  }
  worst.Check();
}

class GemmFloatTest : public ::testing::TestWithParam<GemmFloatMath> {};

TEST_P(GemmFloatTest, AgreesWithTheFormulaForEveryStorage) {
  ThreadPool pool(2);
  ForEachKernel<GemmFloatKernel>([&](const GemmFloatKernel& kernel) {
    ForEachSeed(120, [&](Rng& rng) {
      constexpr DType kTypes[] = {DType::kF64, DType::kF32, DType::kF16, DType::kBF16};
      const DType dtype = kTypes[rng.Below(4)];
      const int bits = rng.Below(2) == 0 ? 16 : 2 + static_cast<int>(rng.Below(7));
      const Weights w = RandomWeights(rng, bits, dtype, RandomSize(rng, 80), RandomSize(rng, 700));
      CheckAgainstFormula(rng, w, RandomSize(rng, 40), GetParam(), pool,
                          [&](const GemmFloatArgs& args) { GemmFloat(args, pool, &kernel); });
    });
  });
}

TEST_P(GemmFloatTest, FewTokensAgreeWithTheFormulaForEveryStorage) {
  ThreadPool pool(2);
  ForEachKernel<GemvKernel>([&](const GemvKernel& kernel) {
    ForEachSeed(150, [&](Rng& rng) {
      constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
      const DType dtype = kTypes[rng.Below(3)];
      const int bits = rng.Below(2) == 0 ? 16 : 2 + static_cast<int>(rng.Below(7));
      const Weights w = RandomWeights(rng, bits, dtype, RandomSize(rng, 80), RandomSize(rng, 700));
      CheckAgainstFormula(rng, w, RandomSize(rng, 17), GetParam(), pool,
                          [&](const GemmFloatArgs& args) { Gemv(args, pool, &kernel); });
    });
  });
}

TEST_P(GemmFloatTest, SeveralSlices) {
  ThreadPool pool(2);
  ForEachKernel<GemmFloatKernel>([&](const GemmFloatKernel& kernel) {
    Rng rng(7);
    const Weights w = RandomWeights(rng, 4, DType::kF32, 300, 33);
    CheckAgainstFormula(rng, w, 600, GetParam(), pool,
                        [&](const GemmFloatArgs& args) { GemmFloat(args, pool, &kernel); });
  });
}

INSTANTIATE_TEST_SUITE_P(Math, GemmFloatTest,
                         ::testing::Values(GemmFloatMath::kF32, GemmFloatMath::kBF16),
                         [](const auto& info) {
                           return info.param == GemmFloatMath::kF32 ? "F32" : "BF16";
                         });

TEST(GemmFloatCheck, TellsProductsFromNone) {
  ForEachKernel<GemmFloatKernel>(
      [](const GemmFloatKernel& kernel) { EXPECT_TRUE(MultipliesRight(kernel)); });
  EXPECT_NO_THROW(CheckGemmFloat());
  GemmFloatKernel broken = *KernelsOf<GemmFloatKernel>().back().kernel;
  broken.multiply_bf16 = [](int64_t, int64_t, int64_t, const uint16_t*, const uint16_t*, float*,
                            int64_t) noexcept {};
  EXPECT_FALSE(MultipliesRight(broken));
}

TEST(FloatWeightsTest, TakesTheSpaceOfItsBits) {
  ThreadPool pool(1);
  Rng rng(1);
  const Weights w = RandomWeights(rng, 4, DType::kF32, 10, 33);
  EXPECT_EQ(LoadFloatWeights(w.source(false), GemmFloatMath::kF32, pool).bytes(),
            10u * 17 + 10 * sizeof(float));
  const Weights half = RandomWeights(rng, 16, DType::kBF16, 10, 33);
  EXPECT_EQ(LoadFloatWeights(half.source(false), GemmFloatMath::kF32, pool).bytes(), 10u * 33 * 2);
}

}  // namespace
}  // namespace flatquant
