#include <gtest/gtest.h>

#include <cmath>

#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int8.h"

namespace flatquant {
namespace {

using cuda_testing::RandomSize;

// int8 of the whole range in rows of `stride`, zeros beyond `cols`.
std::vector<int8_t> RandomRows(Rng& rng, int64_t rows, int64_t cols, int64_t stride) {
  std::vector<int8_t> codes(static_cast<size_t>(rows * stride), 0);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      codes[static_cast<size_t>(r * stride + c)] =
          static_cast<int8_t>(static_cast<int>(rng.Below(256)) - 128);
    }
  }
  return codes;
}

TEST(CudaGemmInt8Test, MatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    const int64_t tokens = RandomSize(rng, 150);
    const int64_t rows = RandomSize(rng, 500);
    const int64_t cols = RandomSize(rng, 1500);
    const int64_t act_stride = RoundUpTo(cols, 16) + 16 * static_cast<int64_t>(rng.Below(9));
    const int64_t weight_stride = RoundUpTo(cols, 16) + 16 * static_cast<int64_t>(rng.Below(9));
    const int64_t y_stride = rows + static_cast<int64_t>(rng.Below(5));
    SCOPED_TRACE(::testing::Message()
                 << tokens << " tokens, " << rows << " rows, " << cols << " columns");
    const std::vector<int8_t> act = RandomRows(rng, tokens, cols, act_stride);
    const std::vector<int8_t> weight = RandomRows(rng, rows, cols, weight_stride);
    std::vector<float> act_scale, weight_scale;
    for (int64_t i = 0; i < tokens; ++i)
      act_scale.push_back(0.01f + static_cast<float>(rng.Uniform()));
    for (int64_t i = 0; i < rows; ++i)
      weight_scale.push_back(0.001f + static_cast<float>(rng.Uniform()) / 50);
    const DeviceBuffer<int8_t> act_device(act), weight_device(weight);
    const DeviceBuffer<float> act_scale_device(act_scale), weight_scale_device(weight_scale);
    DeviceBuffer<float> y(static_cast<size_t>(tokens * y_stride));
    y.Fill(0xff);
    CudaGemmInt8({act_device.get(), act_stride, act_scale_device.get(), tokens, weight_device.get(),
                  weight_stride, weight_scale_device.get(), rows, cols, y.get(), y_stride},
                 nullptr);
    const std::vector<float> out = y.Download();
    cuda_testing::Worst worst;
    for (int64_t m = 0; m < tokens; ++m) {
      for (int64_t r = 0; r < y_stride; ++r) {
        const float actual = out[static_cast<size_t>(m * y_stride + r)];
        if (r >= rows) {
          EXPECT_TRUE(std::isnan(actual)) << "padding was written";
          continue;
        }
        int64_t sum = 0;
        for (int64_t c = 0; c < cols; ++c) {
          sum += act[static_cast<size_t>(m * act_stride + c)] *
                 weight[static_cast<size_t>(r * weight_stride + c)];
        }
        const double expected = static_cast<double>(sum) * act_scale[static_cast<size_t>(m)] *
                                weight_scale[static_cast<size_t>(r)];
        // Three roundings to float.
        worst.Compare(actual, expected, 3 * 0x1p-24 * std::abs(expected), m, r);
      }
    }
    worst.Check();
  });
}

}  // namespace
}  // namespace flatquant
