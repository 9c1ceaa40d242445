#include <gtest/gtest.h>

#include <cstring>

#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

// GemmIntStream where every CTA has several segments, so that its rings, sums and barriers
// turn over: the same bits as GemmIntMma gives, whose own test compares it with the formula.
// Scales are powers of two: products are exact then, and fusing them with an addition (which
// the compiler may do in one kernel and not in the other) changes nothing.

namespace flatquant {
namespace {

struct Operands {
  int64_t tokens, rows, cols, act_stride;
  DeviceBuffer<int8_t> act;
  DeviceBuffer<float> act_scale, scale, bias;
  DeviceBuffer<uint8_t> packed;
  std::vector<__half> start;  // of y, the residual

  Operands(Rng& rng, int64_t tokens, int64_t rows, int64_t cols)
      : tokens(tokens), rows(rows), cols(cols), act_stride(RoundUpTo(cols, 64)) {
    std::vector<int8_t> codes(static_cast<size_t>(tokens * act_stride), 0);
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        codes[static_cast<size_t>(i * act_stride + j)] =
            static_cast<int8_t>(static_cast<int>(rng.Below(16)) - 8);
      }
    }
    act = DeviceBuffer<int8_t>(codes);
    act_scale = DeviceBuffer<float>(std::vector<float>(static_cast<size_t>(tokens), 0x1p-5f));
    const int64_t padded = CudaGemmIntPaddedRows(rows);
    scale = DeviceBuffer<float>(std::vector<float>(static_cast<size_t>(padded), 0x1p-6f));
    bias = DeviceBuffer<float>(cuda_testing::RandomFloats(rng, padded));
    std::vector<uint8_t> canonical(static_cast<size_t>(rows * ((cols + 1) / 2)));
    for (uint8_t& byte : canonical) byte = static_cast<uint8_t>(rng.Next());
    const DeviceBuffer<uint8_t> source(canonical);
    packed = DeviceBuffer<uint8_t>(static_cast<size_t>(CudaGemmIntPackedBytes(rows, cols)));
    CudaPackGemmInt(source.get(), rows, cols, packed.get(), nullptr);
    FLATQUANT_CUDA(cudaDeviceSynchronize());
    start = cuda_testing::RandomElements<__half>(rng, tokens * YStride());
  }

  int64_t YStride() const { return RoundUpTo(rows, 8); }

  // In place: y += ...
  CudaGemmIntArgs Args(const DeviceBuffer<__half>& y, bool has_bias) const {
    CudaGemmIntArgs args;
    args.act = act.get();
    args.act_stride = act_stride;
    args.act_scale = act_scale.get();
    args.tokens = tokens;
    args.weights = {rows, cols, packed.get(), scale.get(), has_bias ? bias.get() : nullptr};
    args.residual = y.get();
    args.y = y.get();
    args.y_stride = YStride();
    return args;
  }
};

void ExpectSameRows(const Operands& o, const DeviceBuffer<__half>& actual,
                    const DeviceBuffer<__half>& expected) {
  const std::vector<__half> a = actual.Download();
  const std::vector<__half> e = expected.Download();
  for (int64_t m = 0; m < o.tokens; ++m) {
    const size_t at = static_cast<size_t>(m * o.YStride());
    for (size_t r = 0; r < static_cast<size_t>(o.rows); ++r) {
      ASSERT_EQ(std::memcmp(&a[at + r], &e[at + r], sizeof(__half)), 0)
          << "token " << m << ", row " << r << " of " << o.tokens << " x " << o.rows << " x "
          << o.cols;
    }
  }
}

TEST(CudaGemmIntStreamTest, ManyRowsMatchMma) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(12, [](Rng& rng) {
    const int64_t tokens = 1 + static_cast<int64_t>(rng.Below(16));
    const int64_t rows = 2000 + static_cast<int64_t>(rng.Below(24000));
    const int64_t cols = cuda_testing::RandomSize(rng, 2500);
    const Operands o(rng, tokens, rows, cols);
    const bool has_bias = rng.Below(2) == 0;
    const DeviceBuffer<__half> expected(o.start);
    const DeviceBuffer<__half> actual(o.start);
    cuda::GemmIntMma(o.Args(expected, has_bias), nullptr);
    cuda::GemmIntStream(o.Args(actual, has_bias), nullptr);
    ExpectSameRows(o, actual, expected);
  });
}

// A chain of early starts in a graph, each adding to what the one before it has written.
TEST(CudaGemmIntStreamTest, ReplayedChainMatchesMma) {
  FLATQUANT_NEEDS_HOPPER();
  constexpr int kSteps = 6, kReplays = 3;
  for (const int64_t tokens : {1, 7, 16}) {
    Rng rng(static_cast<uint64_t>(tokens));
    const Operands o(rng, tokens, 5003, 1301);
    const DeviceBuffer<__half> expected(o.start);
    const DeviceBuffer<__half> actual(o.start);
    for (int i = 0; i < kSteps * kReplays; ++i) {
      cuda::GemmIntMma(o.Args(expected, i % 2 == 0), nullptr);
      FLATQUANT_CUDA(cudaDeviceSynchronize());
    }
    cudaStream_t stream = nullptr;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    FLATQUANT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    FLATQUANT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kSteps; ++i) cuda::GemmIntStream(o.Args(actual, i % 2 == 0), stream);
    FLATQUANT_CUDA(cudaStreamEndCapture(stream, &graph));
    FLATQUANT_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    for (int i = 0; i < kReplays; ++i) FLATQUANT_CUDA(cudaGraphLaunch(exec, stream));
    FLATQUANT_CUDA(cudaStreamSynchronize(stream));
    FLATQUANT_CUDA(cudaGraphExecDestroy(exec));
    FLATQUANT_CUDA(cudaGraphDestroy(graph));
    FLATQUANT_CUDA(cudaStreamDestroy(stream));
    ExpectSameRows(o, actual, expected);
  }
}

}  // namespace
}  // namespace flatquant
