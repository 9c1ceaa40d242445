#include <string>

#include "flatquant/kernels/cuda/bench.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"

namespace flatquant {
namespace {

struct Shape {
  const char* name;
  CudaSiteInput input;
  int64_t tokens, left, right;
};

void Run(cuda_bench::Report& report) {
  const Shape shapes[] = {
      {"plain", CudaSiteInput::kPlain, 2048, 64, 64},
      {"norm", CudaSiteInput::kRmsNorm, 2048, 64, 64},
      {"plain", CudaSiteInput::kPlain, 2048, 32, 128},
      {"plain", CudaSiteInput::kPlain, 2048, 86, 128},
      {"swiglu", CudaSiteInput::kSwiglu, 2048, 86, 128},
      {"plain", CudaSiteInput::kPlain, 2048, 112, 128},
      {"swiglu", CudaSiteInput::kSwiglu, 2048, 112, 128},
      {"swiglu", CudaSiteInput::kSwiglu, 2048, 128, 148},
      {"norm", CudaSiteInput::kRmsNorm, 2048, 64, 80},
      {"norm", CudaSiteInput::kRmsNorm, 1, 64, 64},
      {"swiglu", CudaSiteInput::kSwiglu, 1, 86, 128},
      {"norm", CudaSiteInput::kRmsNorm, 64, 64, 64},
      {"swiglu", CudaSiteInput::kSwiglu, 64, 86, 128},
      {"swiglu", CudaSiteInput::kSwiglu, 64, 112, 128},
      {"swiglu", CudaSiteInput::kSwiglu, 1, 128, 148},
      {"norm", CudaSiteInput::kRmsNorm, 1, 64, 80},
      {"swiglu", CudaSiteInput::kSwiglu, 64, 128, 148},
  };
  for (const Shape& shape : shapes) {
    const int64_t width = shape.left * shape.right;
    constexpr int kCopies = 8;
    const DeviceBuffer<uint16_t> x =
        cuda_bench::RandomHalves(kCopies * 2 * shape.tokens * width, 1);
    const DeviceBuffer<uint16_t> weight = cuda_bench::RandomHalves(width, 2);
    const DeviceBuffer<uint16_t> packed =
        cuda_bench::RandomHalves(CudaKronPackedBytes(shape.left, shape.right) / 2, 3);
    const DeviceBuffer<int8_t> codes(kCopies * shape.tokens * width);
    const DeviceBuffer<float> scales(shape.tokens);
    const double seconds = cuda_bench::MedianSeconds(24, [&](int i, cudaStream_t stream) {
      CudaKronQuantizeArgs args;
      args.input = shape.input;
      args.x = x.get() + i % kCopies * 2 * shape.tokens * width;
      args.up = static_cast<const uint16_t*>(args.x) + shape.tokens * width;
      args.norm_weight = weight.get();
      args.x_stride = args.width = args.code_stride = width;
      args.tokens = shape.tokens;
      args.transform = {shape.left, shape.right, packed.get()};
      args.codes = codes.get() + i % kCopies * shape.tokens * width;
      args.scales = scales.get();
      CudaKronQuantize(args, stream);
    });
    const double inputs = shape.input == CudaSiteInput::kSwiglu ? 2 : 1;
    report.Bytes("kron_quantize " + std::string(shape.name),
                 std::to_string(shape.tokens) + " x " + std::to_string(shape.left) + " x " +
                     std::to_string(shape.right),
                 seconds, static_cast<double>(shape.tokens * width) * (2 * inputs + 1));
  }
}

const cuda_bench::Registration kRun("kron_quantize", Run);

}  // namespace
}  // namespace flatquant
