#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/kernels/cuda/bench.cuh"
#include "flatquant/kernels/gemm_float/cuda_gemm_w4a16.h"

namespace flatquant {
namespace {

void Run(cuda_bench::Report& report) {
  for (const int64_t tokens : {1, 4, 16, 64, 2048}) {
    for (const auto& [rows, cols] :
         std::vector<std::pair<int64_t, int64_t>>{{4096, 4096}, {22016, 4096}, {4096, 11008}}) {
      const int64_t packed_bytes = CudaGemmIntPackedBytes(rows, cols);
      // Twice the largest L2 (60 MB), so that a copy is evicted before it is read again.
      const int copies =
          static_cast<int>(std::clamp<int64_t>((int64_t{120} << 20) / packed_bytes + 1, 2, 32));
      const DeviceBuffer<uint8_t> packed = cuda_bench::RandomBytes(copies * packed_bytes, 1);
      const DeviceBuffer<uint16_t> x = cuda_bench::RandomHalves(tokens * cols, 2);
      const DeviceBuffer<float> scale = cuda_bench::RandomScales(CudaGemmIntPaddedRows(rows), 3);
      const DeviceBuffer<uint16_t> y(tokens * rows);
      const double seconds = cuda_bench::MedianSeconds(copies, [&](int i, cudaStream_t stream) {
        CudaGemmW4A16Args args;
        args.x = x.get();
        args.x_stride = cols;
        args.tokens = tokens;
        args.weights = {rows, cols, packed.get() + i % copies * packed_bytes, scale.get(), nullptr};
        args.y = y.get();
        args.y_stride = rows;
        CudaGemmW4A16(args, stream);
      });
      const std::string shape =
          std::to_string(tokens) + " x " + std::to_string(rows) + " x " + std::to_string(cols);
      if (tokens > 64) {
        report.Operations("gemm_w4a16", shape, seconds, 2.0 * tokens * rows * cols);
      } else {
        report.Bytes(
            "gemm_w4a16", shape, seconds,
            static_cast<double>(rows * cols) / 2 + 4.0 * rows + 2.0 * tokens * (cols + rows));
      }
    }
  }
}

const cuda_bench::Registration kRun("gemm_w4a16", Run);

}  // namespace
}  // namespace flatquant
