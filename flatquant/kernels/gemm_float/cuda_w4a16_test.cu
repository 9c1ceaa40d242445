#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_float/cuda_gemm_w4a16.h"

namespace flatquant {
namespace {

using cuda_testing::Host;
using cuda_testing::RandomSize;

template <typename T>
void RunCase(Rng& rng) {
  const int64_t tokens = RandomSize(rng, 200);
  const int64_t rows = RandomSize(rng, 500);
  const int64_t cols = 8 * RandomSize(rng, 150);
  const int64_t x_stride = cols + 8 * static_cast<int64_t>(rng.Below(3));
  const int64_t y_stride = rows + static_cast<int64_t>(rng.Below(3));
  const bool has_bias = rng.Below(2) == 0;
  const bool has_residual = rng.Below(2) == 0;
  SCOPED_TRACE(::testing::Message()
               << tokens << " tokens, " << rows << " rows, " << cols << " columns");
  std::vector<int> weight(static_cast<size_t>(rows * cols));
  std::vector<uint8_t> canonical(static_cast<size_t>(rows * cols / 2), 0);
  for (size_t i = 0; i < weight.size(); ++i) {
    weight[i] = static_cast<int>(rng.Below(16)) - 8;
    canonical[i / 2] |= static_cast<uint8_t>((weight[i] & 15) << (i % 2 * 4));
  }
  const int64_t padded = CudaGemmIntPaddedRows(rows);
  std::vector<float> scale;
  for (int64_t i = 0; i < padded; ++i)
    scale.push_back(0.001f + static_cast<float>(rng.Uniform()) / 50);
  const std::vector<float> bias = cuda_testing::RandomFloats(rng, padded);
  // What stands beyond a token's columns is no number.
  std::vector<T> x = cuda_testing::RandomElements<T>(rng, tokens * x_stride);
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t c = cols; c < x_stride; ++c)
      x[static_cast<size_t>(m * x_stride + c)] = Host<T>::From(NAN);
  }
  std::vector<T> before(static_cast<size_t>(tokens * y_stride), Host<T>::From(NAN));
  if (has_residual) before = cuda_testing::RandomElements<T>(rng, tokens * y_stride, 3.0);

  const DeviceBuffer<uint8_t> canonical_device(canonical);
  DeviceBuffer<uint8_t> packed(static_cast<size_t>(CudaGemmIntPackedBytes(rows, cols)));
  packed.Fill(0xff);
  CudaPackGemmInt(canonical_device.get(), rows, cols, packed.get(), nullptr);
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  const DeviceBuffer<float> scale_device(scale), bias_device(bias);
  const DeviceBuffer<T> x_device(x), y(before);
  CudaGemmW4A16Args args;
  args.dtype = cuda::Element<T>::kDType;
  args.x = x_device.get();
  args.x_stride = x_stride;
  args.tokens = tokens;
  args.weights = {rows, cols, packed.get(), scale_device.get(),
                  has_bias ? bias_device.get() : nullptr};
  args.residual = has_residual ? y.get() : nullptr;
  args.y = y.get();
  args.y_stride = y_stride;
  CudaGemmW4A16(args, nullptr);
  const std::vector<T> after = y.Download();

  cuda_testing::Worst worst;
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t r = 0; r < y_stride; ++r) {
      const size_t at = static_cast<size_t>(m * y_stride + r);
      if (r >= rows) {
        EXPECT_EQ(std::memcmp(&after[at], &before[at], sizeof(T)), 0) << "padding was written";
        continue;
      }
      double sum = 0, size = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double term = Host<T>::To(x[static_cast<size_t>(m * x_stride + c)]) *
                            weight[static_cast<size_t>(r * cols + c)];
        sum += term;
        size += std::abs(term);
      }
      const double row_scale = scale[static_cast<size_t>(r)];
      const double expected = sum * row_scale + (has_bias ? bias[static_cast<size_t>(r)] : 0) +
                              (has_residual ? Host<T>::To(before[at]) : 0);
      // Products are exact; a tensor core's sum keeps at least 2^-22 of its terms, and there
      // are few such sums in a row. One rounding to T.
      const double tolerance = Host<T>::kEpsilon * std::abs(expected) +
                               4 * 0x1p-22 * (size * row_scale + std::abs(expected)) + 1e-7;
      worst.Compare(Host<T>::To(after[at]), expected, tolerance, m, r);
    }
  }
  worst.Check();
}

TEST(CudaGemmW4A16Test, MatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(
      40, [](Rng& rng) { rng.Below(2) == 0 ? RunCase<__half>(rng) : RunCase<__nv_bfloat16>(rng); });
}

}  // namespace
}  // namespace flatquant
