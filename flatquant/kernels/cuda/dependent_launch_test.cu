#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>

#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"

namespace flatquant {
namespace {

// to[i] = 3 from[other] + step, by CTAs that take their time, so that a successor that did
// not wait would read old numbers or overwrite ones that are still to be read.
__global__ void MixKernel(const uint32_t* from, uint32_t* to, int size, uint32_t step) {
  cuda::LetSuccessorStart();
  cuda::WaitForPredecessor();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t before = from[(i * 7 + static_cast<int>(step)) % size];
  for (uint32_t waited = 0; waited < (blockIdx.x + step) % 5; ++waited) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
    __nanosleep(2000);
#endif
  }
  to[i] = 3 * before + step;
}

// Runs launch(stream) once as it is and then captured and replayed `replays` times.
void RunAndReplay(int replays, const std::function<void(cudaStream_t)>& launch) {
  cudaStream_t stream = nullptr;
  FLATQUANT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  launch(stream);
  FLATQUANT_CUDA(cudaStreamSynchronize(stream));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  FLATQUANT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  launch(stream);
  FLATQUANT_CUDA(cudaStreamEndCapture(stream, &graph));
  FLATQUANT_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  for (int i = 0; i < replays; ++i) FLATQUANT_CUDA(cudaGraphLaunch(exec, stream));
  FLATQUANT_CUDA(cudaStreamSynchronize(stream));
  FLATQUANT_CUDA(cudaGraphExecDestroy(exec));
  FLATQUANT_CUDA(cudaGraphDestroy(graph));
  FLATQUANT_CUDA(cudaStreamDestroy(stream));
}

// Two buffers take turns: each kernel overwrites what the one before it has read.
TEST(DependentLaunchTest, ChainsKeepTheirOrder) {
  FLATQUANT_NEEDS_CUDA();
  constexpr int kSize = 128 * 60, kSteps = 40, kReplays = 3;
  std::vector<uint32_t> expected(kSize);
  for (int i = 0; i < kSize; ++i) expected[static_cast<size_t>(i)] = static_cast<uint32_t>(i);
  const DeviceBuffer<uint32_t> a(expected);
  const DeviceBuffer<uint32_t> b(kSize);
  for (int run = 0; run < 1 + kReplays; ++run) {
    for (uint32_t step = 0; step < kSteps; ++step) {
      std::vector<uint32_t> next(kSize);
      for (int i = 0; i < kSize; ++i) {
        next[static_cast<size_t>(i)] =
            3 * expected[static_cast<size_t>((i * 7 + static_cast<int>(step)) % kSize)] + step;
      }
      expected = next;
    }
  }
  RunAndReplay(kReplays, [&](cudaStream_t stream) {
    for (uint32_t step = 0; step < kSteps; ++step) {
      uint32_t* from = step % 2 == 0 ? a.get() : b.get();
      uint32_t* to = step % 2 == 0 ? b.get() : a.get();
      LaunchDependent(MixKernel, kSize / 128, 128, 0, stream, static_cast<const uint32_t*>(from),
                      to, kSize, step);
    }
  });
  EXPECT_EQ(a.Download(), expected);
}

// A residual stream through sites and linears, as decoding has it: the same with early
// starts as with a wait after every call.
TEST(DependentLaunchTest, SitesAndLinearsGiveWhatTheyGiveOneByOne) {
  FLATQUANT_NEEDS_CUDA();
  constexpr int64_t kLeft = 16, kRight = 64, kWidth = kLeft * kRight;
  constexpr int kLayers = 6, kReplays = 2;
  for (const int64_t tokens : {1, 5, 16, 40}) {
    SCOPED_TRACE(tokens);
    Rng rng(static_cast<uint64_t>(tokens));
    const DeviceBuffer<float> left(
        cuda_testing::RandomFloats(rng, kLeft * kLeft, 1 / std::sqrt(kLeft)));
    const DeviceBuffer<float> right(
        cuda_testing::RandomFloats(rng, kRight * kRight, 1 / std::sqrt(kRight)));
    const DeviceBuffer<uint8_t> kron(static_cast<size_t>(CudaKronPackedBytes(kLeft, kRight)));
    CudaPackKron(kLeft, left.get(), kRight, right.get(), DType::kF16, kron.get(), nullptr);
    const int64_t packed_bytes = CudaGemmIntPackedBytes(kWidth, kWidth);
    const DeviceBuffer<uint8_t> packed(static_cast<size_t>(kLayers * packed_bytes));
    for (int layer = 0; layer < kLayers; ++layer) {
      std::vector<uint8_t> canonical(static_cast<size_t>(kWidth * kWidth / 2));
      for (uint8_t& byte : canonical) byte = static_cast<uint8_t>(rng.Next());
      const DeviceBuffer<uint8_t> source(canonical);
      CudaPackGemmInt(source.get(), kWidth, kWidth, packed.get() + layer * packed_bytes, nullptr);
      FLATQUANT_CUDA(cudaDeviceSynchronize());
    }
    const DeviceBuffer<float> scale(std::vector<float>(kWidth, 0.01f));
    const std::vector<__half> norm = cuda_testing::RandomElements<__half>(rng, kWidth);
    const std::vector<__half> start = cuda_testing::RandomElements<__half>(rng, tokens * kWidth);
    const DeviceBuffer<__half> norm_device(norm);
    DeviceBuffer<__half> x(start);
    const DeviceBuffer<int8_t> codes(static_cast<size_t>(tokens * kWidth));
    const DeviceBuffer<float> scales(static_cast<size_t>(tokens));
    const auto run = [&](cudaStream_t stream, bool waits) {
      for (int layer = 0; layer < kLayers; ++layer) {
        CudaKronQuantizeArgs site;
        site.input = CudaSiteInput::kRmsNorm;
        site.x = x.get();
        site.norm_weight = norm_device.get();
        site.x_stride = site.width = site.code_stride = kWidth;
        site.tokens = tokens;
        site.transform = {kLeft, kRight, kron.get()};
        site.codes = codes.get();
        site.scales = scales.get();
        CudaKronQuantize(site, stream);
        if (waits) FLATQUANT_CUDA(cudaStreamSynchronize(stream));
        CudaGemmInt({codes.get(),
                     kWidth,
                     scales.get(),
                     tokens,
                     {kWidth, kWidth, packed.get() + layer * packed_bytes, scale.get(), nullptr},
                     DType::kF16,
                     x.get(),
                     x.get(),
                     kWidth},
                    stream);
        if (waits) FLATQUANT_CUDA(cudaStreamSynchronize(stream));
      }
    };
    for (int i = 0; i < 1 + kReplays; ++i) run(nullptr, true);
    const std::vector<__half> expected = x.Download();
    x.Upload(start);
    RunAndReplay(kReplays, [&](cudaStream_t stream) { run(stream, false); });
    const std::vector<__half> actual = x.Download();
    EXPECT_EQ(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(__half)), 0);
  }
}

}  // namespace
}  // namespace flatquant
