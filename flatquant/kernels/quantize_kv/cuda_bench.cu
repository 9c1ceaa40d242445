#include <string>
#include <vector>

#include "flatquant/kernels/cuda/bench.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

namespace flatquant {
namespace {

// LLaMA-2-7B's heads.
void Run(cuda_bench::Report& report) {
  for (const int64_t tokens : {1, 64, 512, 2048}) {
    constexpr int64_t kHeads = 32, kDim = 128, kStride = 3 * kHeads * kDim;
    constexpr int kCopies = 4;
    const DeviceBuffer<uint16_t> qkv =
        cuda_bench::RandomHalves(static_cast<size_t>(kCopies * tokens * kStride), 1);
    const DeviceBuffer<uint16_t> q(static_cast<size_t>(tokens * kHeads * kDim));
    const DeviceBuffer<uint16_t> transform = cuda_bench::RandomHalves(kDim * kDim, 2);
    const size_t vectors = static_cast<size_t>(kHeads * tokens);
    const DeviceBuffer<uint8_t> data(2 * vectors * kDim / 2), zero(2 * vectors);
    const DeviceBuffer<uint16_t> scale(2 * vectors);
    const DeviceBuffer<float> rotation =
        cuda_bench::RandomScales(static_cast<size_t>(tokens * kDim / 2), 3);
    std::vector<int32_t> positions;
    for (int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int32_t>(t));
    const DeviceBuffer<int32_t> positions_device(positions);
    const DeviceBuffer<int32_t> slots(std::vector<int32_t>(positions.size(), 0));
    CudaQuantizeKvArgs args;
    args.qkv_stride = kStride;
    args.tokens = tokens;
    args.heads = kHeads;
    args.positions = positions_device.get();
    args.slots = slots.get();
    args.cos = args.sin = rotation.get();
    args.q_transform = args.k_transform = transform.get();
    args.k = {4, kHeads, kDim, tokens, data.get(), scale.get(), zero.get()};
    args.v = {4,
              kHeads,
              kDim,
              tokens,
              data.get() + vectors * kDim / 2,
              scale.get() + vectors,
              zero.get() + vectors};
    args.q = q.get();
    const double seconds = cuda_bench::MedianSeconds(16, [&](int i, cudaStream_t stream) {
      args.qkv = qkv.get() + i % kCopies * tokens * kStride;
      CudaQuantizeKv(args, stream);
    });
    report.Bytes("quantize_kv", std::to_string(tokens) + " x 32 x 128", seconds,
                 static_cast<double>(tokens * kHeads) * (4 * 2 * kDim + 2 * (kDim / 2 + 3)));
  }
}

const cuda_bench::Registration kRun("quantize_kv", Run);

}  // namespace
}  // namespace flatquant
