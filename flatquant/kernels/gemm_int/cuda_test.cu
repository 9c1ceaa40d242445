#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

namespace flatquant {
namespace {

using cuda_testing::Host;
using cuda_testing::RandomSize;

struct Case {
  int64_t tokens, rows, cols, act_stride, y_stride;
  std::vector<int8_t> act, weight;
  std::vector<float> act_scale, scale, bias;
  bool has_bias, has_residual;
};

Case RandomCase(Rng& rng, int64_t max_tokens) {
  Case c;
  c.tokens = RandomSize(rng, max_tokens);
  c.rows = RandomSize(rng, 700);
  c.cols = RandomSize(rng, 1100);
  c.act_stride = RoundUpTo(c.cols, 64) + 64 * static_cast<int64_t>(rng.Below(2));
  c.y_stride = RoundUpTo(c.rows, 8) + 8 * static_cast<int64_t>(rng.Below(2));
  c.has_bias = rng.Below(2) == 0;
  c.has_residual = rng.Below(2) == 0;
  // Codes of up to 8 bits now and then; the sums must be exact all the same.
  const int64_t reach = rng.Below(4) == 0 ? 256 : 16;
  c.act.assign(static_cast<size_t>(c.tokens * c.act_stride), 0);
  for (int64_t i = 0; i < c.tokens; ++i) {
    for (int64_t j = 0; j < c.cols; ++j) {
      c.act[static_cast<size_t>(i * c.act_stride + j)] = static_cast<int8_t>(
          static_cast<int64_t>(rng.Below(static_cast<uint64_t>(reach))) - reach / 2);
    }
  }
  c.weight.resize(static_cast<size_t>(c.rows * c.cols));
  for (int8_t& w : c.weight) w = static_cast<int8_t>(static_cast<int>(rng.Below(16)) - 8);
  for (int64_t i = 0; i < c.tokens; ++i)
    c.act_scale.push_back(0.01f + static_cast<float>(rng.Uniform()));
  const int64_t padded = CudaGemmIntPaddedRows(c.rows);
  for (int64_t i = 0; i < padded; ++i)
    c.scale.push_back(0.001f + static_cast<float>(rng.Uniform()) / 50);
  c.bias = cuda_testing::RandomFloats(rng, padded);
  return c;
}

std::vector<uint8_t> Canonical(const Case& c) {
  const int64_t row_bytes = (c.cols + 1) / 2;
  std::vector<uint8_t> bytes(static_cast<size_t>(c.rows * row_bytes), 0);
  for (int64_t r = 0; r < c.rows; ++r) {
    for (int64_t k = 0; k < c.cols; ++k) {
      bytes[static_cast<size_t>(r * row_bytes + k / 2)] |=
          static_cast<uint8_t>((c.weight[static_cast<size_t>(r * c.cols + k)] & 15) << (k % 2 * 4));
    }
  }
  return bytes;
}

template <typename T>
void RunCase(Rng& rng, int64_t max_tokens, void (*kernel)(const CudaGemmIntArgs&, CudaStream)) {
  const Case c = RandomCase(rng, max_tokens);
  SCOPED_TRACE(::testing::Message()
               << c.tokens << " tokens, " << c.rows << " rows, " << c.cols << " columns");
  const DeviceBuffer<uint8_t> canonical(Canonical(c));
  DeviceBuffer<uint8_t> packed(static_cast<size_t>(CudaGemmIntPackedBytes(c.rows, c.cols)));
  packed.Fill(0xff);
  CudaPackGemmInt(canonical.get(), c.rows, c.cols, packed.get(), nullptr);
  const DeviceBuffer<int8_t> act(c.act);
  const DeviceBuffer<float> act_scale(c.act_scale);
  const DeviceBuffer<float> scale(c.scale);
  const DeviceBuffer<float> bias(c.bias);
  // Poison: a NaN in every element, which padding must still hold afterwards.
  std::vector<T> before(static_cast<size_t>(c.tokens * c.y_stride), Host<T>::From(NAN));
  if (c.has_residual) {
    before = cuda_testing::RandomElements<T>(rng, c.tokens * c.y_stride, 3.0);
  }
  const DeviceBuffer<T> y(before);
  CudaGemmIntArgs args;
  args.act = act.get();
  args.act_stride = c.act_stride;
  args.act_scale = act_scale.get();
  args.tokens = c.tokens;
  args.weights = {c.rows, c.cols, packed.get(), scale.get(), c.has_bias ? bias.get() : nullptr};
  args.dtype = cuda::Element<T>::kDType;
  args.residual = c.has_residual ? y.get() : nullptr;
  args.y = y.get();
  args.y_stride = c.y_stride;
  kernel(args, nullptr);
  const std::vector<T> after = y.Download();

  cuda_testing::Worst worst;
  for (int64_t m = 0; m < c.tokens; ++m) {
    for (int64_t r = 0; r < c.y_stride; ++r) {
      const size_t at = static_cast<size_t>(m * c.y_stride + r);
      if (r >= RoundUpTo(c.rows, 8)) {
        EXPECT_EQ(std::memcmp(&after[at], &before[at], sizeof(T)), 0) << "padding was written";
      }
      if (r >= c.rows) continue;
      int64_t sum = 0;
      for (int64_t k = 0; k < c.cols; ++k) {
        sum += c.act[static_cast<size_t>(m * c.act_stride + k)] *
               c.weight[static_cast<size_t>(r * c.cols + k)];
      }
      const double product = static_cast<double>(sum) * c.act_scale[static_cast<size_t>(m)] *
                             c.scale[static_cast<size_t>(r)];
      const double bias_term = c.has_bias ? c.bias[static_cast<size_t>(r)] : 0;
      const double residual = c.has_residual ? Host<T>::To(before[at]) : 0;
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

TEST(CudaGemmIntTest, MmaMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    if (rng.Below(2) == 0) {
      RunCase<__half>(rng, 70, cuda::GemmIntMma);
    } else {
      RunCase<__nv_bfloat16>(rng, 70, cuda::GemmIntMma);
    }
  });
}

TEST(CudaGemmIntTest, WgmmaMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    if (rng.Below(2) == 0) {
      RunCase<__half>(rng, 600, cuda::GemmIntWgmma);
    } else {
      RunCase<__nv_bfloat16>(rng, 600, cuda::GemmIntWgmma);
    }
  });
}

TEST(CudaGemmIntTest, SplitMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    if (rng.Below(2) == 0) {
      RunCase<__half>(rng, 150, cuda::GemmIntSplit);
    } else {
      RunCase<__nv_bfloat16>(rng, 150, cuda::GemmIntSplit);
    }
  });
}

TEST(CudaGemmIntTest, DispatchTakesAnyNumberOfTokens) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(10, [](Rng& rng) { RunCase<__half>(rng, 100, CudaGemmInt); });
}

// Every multiprocessor gets several tiles: the pipeline's barriers turn over.
TEST(CudaGemmIntTest, LargeWgmmaMatchesMma) {
  FLATQUANT_NEEDS_HOPPER();
  const int64_t tokens = 2100, rows = 11008, cols = 1376;
  Rng rng(7);
  std::vector<uint8_t> canonical(static_cast<size_t>(rows * cols / 2));
  for (uint8_t& byte : canonical) byte = static_cast<uint8_t>(rng.Next());
  const int64_t act_stride = RoundUpTo(cols, 64);
  std::vector<int8_t> codes(static_cast<size_t>(tokens * act_stride));
  for (int8_t& code : codes) code = static_cast<int8_t>(static_cast<int>(rng.Below(16)) - 8);
  const DeviceBuffer<uint8_t> source(canonical);
  const DeviceBuffer<uint8_t> packed(static_cast<size_t>(CudaGemmIntPackedBytes(rows, cols)));
  CudaPackGemmInt(source.get(), rows, cols, packed.get(), nullptr);
  const DeviceBuffer<int8_t> act(codes);
  const DeviceBuffer<float> act_scale(std::vector<float>(tokens, 0.01f));
  const DeviceBuffer<float> scale(std::vector<float>(CudaGemmIntPaddedRows(rows), 0.01f));
  DeviceBuffer<__half> y[2] = {DeviceBuffer<__half>(tokens * rows),
                               DeviceBuffer<__half>(tokens * rows)};
  for (int i = 0; i < 2; ++i) {
    y[i].Fill(0xff);
    const CudaGemmIntArgs args = {act.get(),
                                  act_stride,
                                  act_scale.get(),
                                  tokens,
                                  {rows, cols, packed.get(), scale.get(), nullptr},
                                  DType::kF16,
                                  nullptr,
                                  y[i].get(),
                                  rows};
    (i == 0 ? cuda::GemmIntMma : cuda::GemmIntWgmma)(args, nullptr);
  }
  const std::vector<__half> expected = y[0].Download();
  const std::vector<__half> actual = y[1].Download();
  EXPECT_EQ(std::memcmp(actual.data(), expected.data(), actual.size() * 2), 0);
}

}  // namespace
}  // namespace flatquant
