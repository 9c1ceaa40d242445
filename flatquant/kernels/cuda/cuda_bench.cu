// flatquant_kernels_cuda_bench [name ...]: times the CUDA kernels whose benchmark's
// name starts with one of the arguments (all without arguments).

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "flatquant/kernels/cuda/bench.cuh"
#include "flatquant/kernels/cuda/int8_peak.cuh"

namespace flatquant::cuda_bench {
namespace {

__device__ uint32_t Hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// run(i, hash) for i in [0, count)
template <typename Run>
__global__ void ForEach(size_t count, uint32_t seed, Run run) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    run(i, Hash(static_cast<uint32_t>(i) ^ Hash(seed)));
  }
}

template <typename T, typename Run>
DeviceBuffer<T> Filled(size_t count, uint32_t seed, const Run& run) {
  DeviceBuffer<T> buffer(count);
  T* data = buffer.get();
  ForEach<<<1024, 256>>>(count, seed,
                         [=] __device__(size_t i, uint32_t hash) { data[i] = run(hash); });
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  return buffer;
}

__global__ void CopyKernel(const uint4* from, uint4* to) {
  const size_t first = blockIdx.x * size_t{1024} + threadIdx.x;
  uint4 values[4];
  for (int i = 0; i < 4; ++i) values[i] = __ldcs(from + first + 256 * i);
  for (int i = 0; i < 4; ++i) __stcs(to + first + 256 * i, values[i]);
}

Limits MeasureLimits() {
  Limits limits;
  constexpr size_t kBytes = size_t{2} << 30;
  const DeviceBuffer<uint8_t> from = RandomBytes(kBytes, 1);
  const DeviceBuffer<uint8_t> to(kBytes);
  const uint4* source = reinterpret_cast<const uint4*>(from.get());
  uint4* target = reinterpret_cast<uint4*>(to.get());
  // By a kernel, because a graph's copy nodes run on slower copy engines.
  const double copy = MedianSeconds(2, [&](int, cudaStream_t stream) {
    CopyKernel<<<static_cast<unsigned>(kBytes / 16 / 1024), 256, 0, stream>>>(source, target);
  });
  limits.copy_bytes = 2.0 * kBytes / copy;
  std::printf("copy bandwidth: %.0f GB/s, bytes read and written\n", limits.copy_bytes / 1e9);
  if (CurrentCudaDevice().sm_version != 90) return limits;
  const DeviceBuffer<int32_t> sink(1);
  constexpr int kProducts = 16384;
  const double ops = 2.0 * 64 * 256 * 32 * 2 * kProducts * CurrentCudaDevice().sm_count;
  // Power, and with it the clock, depends on how many bits toggle: the GEMM's own
  // operands are nibbles in the upper half of A's bytes, small codes in B's.
  const struct {
    const char* name;
    uint32_t a_mask;
    int b_shift;
  } kinds[] = {{"int8 x int4", ~0u, 0},
               {"(int4 << 4) x int4", 0xf0f0f0f0u, 0},
               {"(int4 << 4) x (int4 << 4)", 0xf0f0f0f0u, 4}};
  for (const auto& kind : kinds) {
    const double seconds = MedianSeconds(4, [&](int, cudaStream_t stream) {
      cuda::LaunchInt8Peak(kProducts, kind.a_mask, kind.b_shift, sink.get(), stream);
    });
    std::printf("INT8 wgmma, %s: %.0f TOPS\n", kind.name, ops / seconds / 1e12);
    if (kind.a_mask != ~0u && kind.b_shift == 0) limits.int8_ops = ops / seconds;
  }
  return limits;
}

void Print(std::string_view kernel, std::string_view shape, double seconds, const char* rest) {
  std::printf("| %-28.*s | %-24.*s | %9.2f | %s |\n", static_cast<int>(kernel.size()),
              kernel.data(), static_cast<int>(shape.size()), shape.data(), seconds * 1e6, rest);
  std::fflush(stdout);
}

}  // namespace

void Report::Operations(std::string_view kernel, std::string_view shape, double seconds,
                        double ops) {
  char text[64];
  std::snprintf(text, sizeof(text), "%7.0f TOPS | %5.1f%%", ops / seconds / 1e12,
                limits_.int8_ops > 0 ? 100 * ops / seconds / limits_.int8_ops : 0.0);
  Print(kernel, shape, seconds, text);
}

void Report::Bytes(std::string_view kernel, std::string_view shape, double seconds, double bytes) {
  char text[64];
  std::snprintf(text, sizeof(text), "%7.0f GB/s | %5.1f%%", bytes / seconds / 1e9,
                100 * bytes / seconds / limits_.copy_bytes);
  Print(kernel, shape, seconds, text);
}

void Report::Time(std::string_view kernel, std::string_view shape, double seconds) {
  Print(kernel, shape, seconds, "             |       ");
}

double MedianSeconds(int count, const std::function<void(int, cudaStream_t)>& launch) {
  constexpr int kReplays = 9;
  cudaStream_t stream;
  FLATQUANT_CUDA(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  FLATQUANT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) launch(i, stream);
  FLATQUANT_CUDA(cudaStreamEndCapture(stream, &graph));
  FLATQUANT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  FLATQUANT_CUDA(cudaEventCreate(&begin));
  FLATQUANT_CUDA(cudaEventCreate(&end));
  FLATQUANT_CUDA(cudaGraphLaunch(executable, stream));  // warm-up
  std::vector<float> times(kReplays);
  for (float& time : times) {
    FLATQUANT_CUDA(cudaEventRecord(begin, stream));
    FLATQUANT_CUDA(cudaGraphLaunch(executable, stream));
    FLATQUANT_CUDA(cudaEventRecord(end, stream));
    FLATQUANT_CUDA(cudaEventSynchronize(end));
    FLATQUANT_CUDA(cudaEventElapsedTime(&time, begin, end));
  }
  FLATQUANT_CUDA(cudaGraphExecDestroy(executable));
  FLATQUANT_CUDA(cudaGraphDestroy(graph));
  FLATQUANT_CUDA(cudaEventDestroy(begin));
  FLATQUANT_CUDA(cudaEventDestroy(end));
  FLATQUANT_CUDA(cudaStreamDestroy(stream));
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2] / 1e3 / count;
}

std::vector<Entry>& Registry() {
  static std::vector<Entry> entries;
  return entries;
}

DeviceBuffer<uint8_t> RandomBytes(size_t bytes, uint32_t seed) {
  DeviceBuffer<uint8_t> buffer(bytes);
  uint32_t* data = reinterpret_cast<uint32_t*>(buffer.get());
  ForEach<<<1024, 256>>>(bytes / 4, seed,
                         [=] __device__(size_t i, uint32_t hash) { data[i] = hash; });
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  return buffer;
}

DeviceBuffer<int8_t> RandomCodes(size_t count, uint32_t seed, int shift) {
  return Filled<int8_t>(count, seed, [shift] __device__(uint32_t hash) {
    return static_cast<int8_t>((static_cast<int>(hash % 16) - 8) * (1 << shift));
  });
}

DeviceBuffer<uint16_t> RandomHalves(size_t count, uint32_t seed) {
  return Filled<uint16_t>(count, seed, [] __device__(uint32_t hash) {
    // Sign, exponent of 2^-4 .. 2^1, random mantissa.
    return static_cast<uint16_t>((hash & 0x83ff) | ((11 + (hash >> 20) % 6) << 10));
  });
}

DeviceBuffer<float> RandomScales(size_t count, uint32_t seed) {
  return Filled<float>(count, seed, [] __device__(uint32_t hash) {
    return 0.001f + static_cast<float>(hash % 1000) * 1e-5f;
  });
}

}  // namespace flatquant::cuda_bench

int main(int argc, char** argv) {
  using namespace flatquant::cuda_bench;
  try {
    const Limits limits = MeasureLimits();
    Report report(limits);
    std::printf("| %-28s | %-24s | %9s | %12s | %6s |\n", "kernel", "shape", "us", "rate", "limit");
    std::printf("|---|---|---|---|---|\n");
    std::sort(Registry().begin(), Registry().end(),
              [](const Entry& a, const Entry& b) { return a.name < b.name; });
    for (const Entry& entry : Registry()) {
      bool wanted = argc == 1;
      for (int i = 1; i < argc; ++i) wanted |= entry.name.starts_with(argv[i]);
      if (wanted) entry.run(report);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
