// flatquant_kernels_cuda_bench [name ...]: times the CUDA kernels whose benchmark's
// name starts with one of the arguments (all without arguments).

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "flatquant/kernels/cuda/bench.cuh"

namespace flatquant::cuda_bench {
namespace {

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
                limits_.int8_ops_per_s > 0 ? 100 * ops / seconds / limits_.int8_ops_per_s : 0.0);
  Print(kernel, shape, seconds, text);
}

void Report::Bytes(std::string_view kernel, std::string_view shape, double seconds, double bytes) {
  char text[64];
  std::snprintf(text, sizeof(text), "%7.0f GB/s | %5.1f%%", bytes / seconds / 1e9,
                100 * bytes / seconds / limits_.copy_bytes_per_s);
  Print(kernel, shape, seconds, text);
}

void Report::Time(std::string_view kernel, std::string_view shape, double seconds) {
  Print(kernel, shape, seconds, "             |       ");
}

std::vector<Entry>& Registry() {
  static std::vector<Entry> entries;
  return entries;
}

}  // namespace flatquant::cuda_bench

int main(int argc, char** argv) {
  using namespace flatquant::cuda_bench;
  try {
    const flatquant::CudaLimits limits = flatquant::MeasureCudaLimits();
    std::printf("copy bandwidth: %.0f GB/s, bytes read and written\n",
                limits.copy_bytes_per_s / 1e9);
    std::printf("INT8 wgmma: %.0f TOPS\n", limits.int8_ops_per_s / 1e12);
    std::printf("cuBLASLt bf16: %.0f TFLOP/s\n", limits.bf16_flops_per_s / 1e12);
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
