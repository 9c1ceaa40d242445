#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/kernels/cuda/bench.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/gemm_int/cuda_gemm_int8.h"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

namespace flatquant {
namespace {

using Kernel = void (*)(const CudaGemmIntArgs&, CudaStream);

struct Shape {
  int64_t tokens, rows, cols;
};

// Times `launches` calls over enough copies of the weights that each comes from memory.
double Seconds(const Shape& shape, Kernel kernel, int launches, int act_shift) {
  const int64_t packed_bytes = CudaGemmIntPackedBytes(shape.rows, shape.cols);
  // Twice the largest L2 (60 MB), so that a copy is evicted before it is read again.
  const int copies =
      static_cast<int>(std::clamp<int64_t>((int64_t{120} << 20) / packed_bytes + 1, 2, 32));
  const DeviceBuffer<uint8_t> packed = cuda_bench::RandomBytes(copies * packed_bytes, 1);
  const DeviceBuffer<int8_t> act = cuda_bench::RandomCodes(shape.tokens * shape.cols, 2, act_shift);
  const DeviceBuffer<float> act_scale = cuda_bench::RandomScales(shape.tokens, 3);
  const DeviceBuffer<float> scale = cuda_bench::RandomScales(CudaGemmIntPaddedRows(shape.rows), 4);
  const DeviceBuffer<uint16_t> y(shape.tokens * shape.rows);
  return cuda_bench::MedianSeconds(std::max(launches, copies), [&](int i, cudaStream_t stream) {
    const CudaGemmIntWeights weights = {
        shape.rows, shape.cols, packed.get() + i % copies * packed_bytes, scale.get(), nullptr};
    kernel({act.get(), shape.cols, act_scale.get(), shape.tokens, weights, DType::kF16, nullptr,
            y.get(), shape.rows},
           stream);
  });
}

std::string Name(const Shape& shape) {
  return std::to_string(shape.tokens) + " x " + std::to_string(shape.rows) + " x " +
         std::to_string(shape.cols);
}

void Many(cuda_bench::Report& report) {
  const Shape shapes[] = {{8192, 4096, 11008}, {8192, 11008, 4096}, {2048, 4096, 4096},
                          {2048, 12288, 4096}, {2048, 11008, 4096}, {2048, 22016, 4096},
                          {2048, 4096, 11008}, {512, 4096, 4096}};
  for (const Shape& shape : shapes) {
    const double ops = 2.0 * shape.tokens * shape.rows * shape.cols;
    report.Operations("gemm_int wgmma", Name(shape), Seconds(shape, cuda::GemmIntWgmma, 10, 0),
                      ops);
    if (shape.tokens < 2048) continue;
    report.Operations("gemm_int wgmma, codes << 4", Name(shape),
                      Seconds(shape, cuda::GemmIntWgmma, 10, 4), ops);
  }
}

void Some(cuda_bench::Report& report) {
  for (const int64_t tokens : {64, 128, 256}) {
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {4096, 4096}, {12288, 4096}, {22016, 4096}, {4096, 11008}}) {
      const Shape shape = {tokens, rows, cols};
      const double bytes =
          static_cast<double>(rows * cols) / 2 + 4.0 * rows + tokens * (cols + 2.0 * rows);
      report.Bytes("gemm_int split", Name(shape), Seconds(shape, cuda::GemmIntSplit, 30, 0), bytes);
      if (tokens < 128) continue;
      report.Bytes("gemm_int wgmma", Name(shape), Seconds(shape, cuda::GemmIntWgmma, 30, 0), bytes);
    }
  }
}

void Few(cuda_bench::Report& report) {
  for (const int64_t tokens : {1, 2, 4, 8, 16, 32}) {
    for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{
             {4096, 4096}, {12288, 4096}, {22016, 4096}, {4096, 11008}, {8192, 28672}}) {
      const Shape shape = {tokens, rows, cols};
      // Weights, activations, results: each once.
      const double bytes =
          static_cast<double>(rows * cols) / 2 + 4.0 * rows + tokens * (cols + 2.0 * rows);
      report.Bytes("gemm_int", Name(shape), Seconds(shape, CudaGemmInt, 30, 0), bytes);
      report.Bytes("gemm_int mma", Name(shape), Seconds(shape, cuda::GemmIntMma, 30, 0), bytes);
    }
  }
}

// An output projection.
void Head(cuda_bench::Report& report) {
  for (const int64_t tokens : {1, 4, 16, 64}) {
    for (const int64_t rows : {32000, 128256}) {
      const int64_t cols = 4096;
      const DeviceBuffer<int8_t> weight = cuda_bench::RandomCodes(rows * cols, 1, 4);
      const DeviceBuffer<int8_t> act = cuda_bench::RandomCodes(tokens * cols, 2, 4);
      const DeviceBuffer<float> act_scale = cuda_bench::RandomScales(tokens, 3);
      const DeviceBuffer<float> scale = cuda_bench::RandomScales(rows, 4);
      const DeviceBuffer<float> y(tokens * rows);
      const double seconds = cuda_bench::MedianSeconds(10, [&](int, cudaStream_t stream) {
        CudaGemmInt8({act.get(), cols, act_scale.get(), tokens, weight.get(), cols, scale.get(),
                      rows, cols, y.get(), rows},
                     stream);
      });
      report.Bytes("gemm_int8", Name({tokens, rows, cols}), seconds,
                   static_cast<double>(rows * cols) + 4.0 * rows + tokens * (cols + 4.0 * rows));
    }
  }
}

const cuda_bench::Registration kMany("gemm_int wgmma", Many);
const cuda_bench::Registration kSome("gemm_int split", Some);
const cuda_bench::Registration kFew("gemm_int few tokens", Few);
const cuda_bench::Registration kHead("gemm_int8", Head);

}  // namespace
}  // namespace flatquant
