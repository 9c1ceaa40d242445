#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_problem.cuh"

namespace flatquant {
namespace {

using cuda_testing::GemmIntProblem;
using cuda_testing::GemmIntSize;
using cuda_testing::Host;
using cuda_testing::RandomSize;

using Kernel = void (*)(const CudaGemmIntArgs&, CudaStream);

::testing::Message Text(const GemmIntSize& size) {
  return ::testing::Message() << size.tokens << " tokens, " << size.rows << " rows, " << size.cols
                              << " columns";
}

template <typename T>
void ExpectFormula(Rng& rng, const GemmIntSize& size, Kernel kernel) {
  SCOPED_TRACE(Text(size));
  GemmIntProblem<T> c(rng, size);
  const std::vector<T> after = c.Run(kernel);
  cuda_testing::Worst worst;
  for (int64_t m = 0; m < size.tokens; ++m) {
    for (int64_t r = 0; r < c.y_stride; ++r) {
      const size_t at = static_cast<size_t>(m * c.y_stride + r);
      if (r >= RoundUpTo(size.rows, 8)) {
        EXPECT_EQ(std::memcmp(&after[at], &c.before[at], sizeof(T)), 0) << "padding was written";
      }
      if (r >= size.rows) continue;
      int64_t sum = 0;
      for (int64_t k = 0; k < size.cols; ++k) {
        sum += c.act[static_cast<size_t>(m * c.act_stride + k)] *
               c.weight[static_cast<size_t>(r * size.cols + k)];
      }
      const double product = static_cast<double>(sum) * c.act_scale[static_cast<size_t>(m)] *
                             c.scale[static_cast<size_t>(r)];
      const double bias_term = c.has_bias ? c.bias[static_cast<size_t>(r)] : 0;
      const double residual = c.has_residual ? Host<T>::To(c.before[at]) : 0;
      const double expected = product + bias_term + residual;
      // One rounding to T, four to float of terms no larger than these.
      const double tolerance =
          Host<T>::kEpsilon * std::abs(expected) + 1e-7 +
          4 * 0x1p-23 * (std::abs(product) + std::abs(bias_term) + std::abs(residual));
      worst.Compare(Host<T>::To(after[at]), expected, tolerance, m, r);
    }
  }
  worst.Check();
}

// Random sizes with up to this many tokens.
void ExpectFormulaOften(uint64_t cases, int64_t max_tokens, Kernel kernel) {
  cuda_testing::ForEachCase(cases, [&](Rng& rng) {
    const GemmIntSize size = {RandomSize(rng, max_tokens), RandomSize(rng, 700),
                              RandomSize(rng, 1100)};
    if (rng.Below(2) == 0) {
      ExpectFormula<__half>(rng, size, kernel);
    } else {
      ExpectFormula<__nv_bfloat16>(rng, size, kernel);
    }
  });
}

// Bit by bit what GemmIntMma gives, results and padding, where the formula on a CPU would take
// long.
template <typename T>
void ExpectMma(GemmIntSize size, Kernel kernel) {
  size.exact_scales = true;
  SCOPED_TRACE(Text(size));
  Rng rng(static_cast<uint64_t>(size.tokens + size.rows + size.cols));
  GemmIntProblem<T> c(rng, size);
  const std::vector<T> expected = c.Run(cuda::GemmIntMma);
  const std::vector<T> actual = c.Run(kernel);
  for (int64_t m = 0; m < size.tokens; ++m) {
    for (int64_t r = 0; r < c.y_stride; ++r) {
      // Free to be written.
      if (r >= size.rows && r < RoundUpTo(size.rows, 8)) continue;
      const size_t at = static_cast<size_t>(m * c.y_stride + r);
      if (std::memcmp(&actual[at], &expected[at], sizeof(T)) == 0) continue;
      FAIL() << "[" << m << ", " << r << "]: " << Host<T>::To(actual[at]) << " instead of "
             << Host<T>::To(expected[at]);
    }
  }
}

// Rows and columns around the borders of blocks of 16 rows, tiles of 128 and 256, chunks of 128
// columns; fewer chunks than warps or CTAs of a cluster; many more than a ring holds.
void ExpectMmaOnOddShapes(const std::vector<int64_t>& tokens, Kernel kernel) {
  const std::pair<int64_t, int64_t> shapes[] = {
      {1, 4}, {40, 130}, {257, 1000}, {1000, 4100}, {1000, 11008}, {4104, 1100}, {12300, 520}};
  bool half = false;  // an odd number of shapes: each has both types in turn
  for (const int64_t m : tokens) {
    for (const auto& [rows, cols] : shapes) {
      half = !half;
      if (half) {
        ExpectMma<__half>({m, rows, cols}, kernel);
      } else {
        ExpectMma<__nv_bfloat16>({m, rows, cols}, kernel);
      }
    }
  }
}

TEST(CudaGemmIntTest, MmaMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  ExpectFormulaOften(40, 70, cuda::GemmIntMma);
}

TEST(CudaGemmIntTest, FlowMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectFormulaOften(40, 8, cuda::GemmIntFlow);
}

TEST(CudaGemmIntTest, SplitMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectFormulaOften(60, 150, cuda::GemmIntSplit);
}

TEST(CudaGemmIntTest, WgmmaMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectFormulaOften(40, 600, cuda::GemmIntWgmma);
}

TEST(CudaGemmIntTest, DispatchTakesAnyNumberOfTokens) {
  FLATQUANT_NEEDS_CUDA();
  ExpectFormulaOften(10, 100, CudaGemmInt);
}

TEST(CudaGemmIntTest, FlowMatchesMmaOnOddShapes) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectMmaOnOddShapes({1, 2, 3, 8}, cuda::GemmIntFlow);
}

TEST(CudaGemmIntTest, SplitMatchesMmaOnOddShapes) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectMmaOnOddShapes({1, 9, 16, 17, 32, 33, 64, 65, 130}, cuda::GemmIntSplit);
}

// Tiles for more than one wave of CTAs, in each of GemmIntSplit's configurations.
TEST(CudaGemmIntTest, SplitOfMoreThanOneWaveMatchesMma) {
  FLATQUANT_NEEDS_HOPPER();
  const int64_t rows = 300 * 256 - 50, cols = 300;
  for (const int64_t tokens : {16, 32, 64, 70}) {
    ExpectMma<__half>({tokens, rows, cols}, cuda::GemmIntSplit);
  }
}

// Two tokens whose activations leave no room for two CTAs of a multiprocessor, and more than
// fit at all.
TEST(CudaGemmIntTest, WideInputsLeaveFlowForOtherKernels) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectMma<__half>({2, 300, 30000}, cuda::GemmIntFlow);
  Rng rng(1);
  const GemmIntSize size = {8, 40, 30000};
  GemmIntProblem<__half>(rng, size).Run(
      [](const CudaGemmIntArgs& args, CudaStream) { EXPECT_FALSE(cuda::GemmIntFlowTakes(args)); });
  ExpectFormula<__half>(rng, size, CudaGemmInt);
}

// Every multiprocessor gets several tiles: the pipeline's barriers turn over.
TEST(CudaGemmIntTest, LargeWgmmaMatchesMma) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectMma<__half>({2100, 11008, 1376}, cuda::GemmIntWgmma);
}

}  // namespace
}  // namespace flatquant
