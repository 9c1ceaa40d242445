#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_prefill.cuh"
#include "flatquant/kernels/cuda/bench.cuh"

namespace flatquant {
namespace {

// A cache of random vectors.
struct Plane {
  DeviceBuffer<uint8_t> data, zero;
  DeviceBuffer<uint16_t> wide;
  DeviceBuffer<uint16_t> scale;
  CudaKvPlane view;
  Plane(int bits, int64_t slots, int64_t heads, int64_t capacity) {
    const size_t vectors = static_cast<size_t>(slots * heads * capacity);
    if (bits == 16) {
      wide = cuda_bench::RandomHalves(vectors * 128, 1);
      view = {bits, heads, 128, capacity, reinterpret_cast<uint8_t*>(wide.get()), nullptr, nullptr};
      return;
    }
    data = cuda_bench::RandomBytes(vectors * 64, 1);
    zero = DeviceBuffer<uint8_t>(vectors);
    zero.Fill(7);
    scale = cuda_bench::RandomBf16Scales(vectors, 2);
    view = {bits, heads, 128, capacity, data.get(), scale.get(), zero.get()};
  }
};

void Decode(cuda_bench::Report& report) {
  struct Shape {
    int64_t tokens, heads, kv_heads, length;
    int bits = 4;
  };
  for (const Shape& shape : {Shape{1, 32, 32, 2176},
                             {4, 32, 32, 2176},
                             {16, 32, 32, 2176},
                             {64, 32, 32, 2176},
                             {1, 32, 8, 2176},
                             {16, 32, 8, 2176},
                             {64, 32, 8, 2176},
                             {1, 32, 8, 131072},
                             {1, 32, 32, 2176, 16},
                             {4, 32, 32, 2176, 16},
                             {16, 32, 32, 2176, 16},
                             {64, 32, 32, 2176, 16},
                             {64, 32, 8, 2176, 16}}) {
    const double bytes =
        2.0 * shape.tokens * shape.kv_heads * shape.length * (shape.bits == 16 ? 256 : 64 + 3);
    // Layers' caches, so that each comes from memory.
    const int copies = static_cast<int>(std::clamp(200e6 / bytes, 2.0, 16.0));
    const Plane k(shape.bits, copies * shape.tokens, shape.kv_heads, shape.length);
    const Plane v(shape.bits, copies * shape.tokens, shape.kv_heads, shape.length);
    const size_t elements = static_cast<size_t>(shape.tokens * shape.heads * 128);
    const DeviceBuffer<uint16_t> q = cuda_bench::RandomHalves(elements, 3);
    const DeviceBuffer<uint16_t> y(elements);
    std::vector<int32_t> slots;
    for (int64_t i = 0; i < copies * shape.tokens; ++i) slots.push_back(static_cast<int32_t>(i));
    const DeviceBuffer<int32_t> slots_device(slots);
    const DeviceBuffer<int32_t> lengths(
        std::vector<int32_t>(slots.size(), static_cast<int32_t>(shape.length)));
    CudaAttentionDecodeArgs args;
    args.q = q.get();
    args.y = y.get();
    args.tokens = shape.tokens;
    args.heads = shape.heads;
    args.scale = 0.0884f;
    args.k = k.view;
    args.v = v.view;
    args.lengths = lengths.get();
    args.max_length = shape.length;
    const DeviceBuffer<uint8_t> workspace(static_cast<size_t>(CudaAttentionWorkspaceBytes(args)));
    args.workspace = workspace.get();
    const double seconds = cuda_bench::MedianSeconds(2 * copies, [&](int i, cudaStream_t stream) {
      args.slots = slots_device.get() + i % copies * shape.tokens;
      CudaAttentionDecode(args, stream);
    });
    report.Bytes("attention decode kv" + std::to_string(shape.bits),
                 std::to_string(shape.tokens) + " x " + std::to_string(shape.heads) + "/" +
                     std::to_string(shape.kv_heads) + " x " + std::to_string(shape.length),
                 seconds, bytes);
  }
}

using PrefillKernel = void (*)(const CudaAttentionPrefillArgs&, CudaStream);

void PrefillRow(cuda_bench::Report& report, const char* name, PrefillKernel kernel, int bits,
                int64_t sequences, int64_t tokens, int64_t kv_heads) {
  const Plane k(bits, sequences, kv_heads, tokens);
  const Plane v(bits, sequences, kv_heads, tokens);
  const DeviceBuffer<uint16_t> q =
      cuda_bench::RandomHalves(static_cast<size_t>(sequences * tokens * 32 * 128), 3);
  const DeviceBuffer<uint16_t> y(q.size());
  std::vector<CudaAttentionSegment> segments;
  for (int64_t i = 0; i < sequences; ++i) {
    segments.push_back({static_cast<int32_t>(i), 0, static_cast<int32_t>(i * tokens),
                        static_cast<int32_t>(tokens)});
  }
  CudaAttentionPrefillArgs args;
  args.q = q.get();
  args.y = y.get();
  args.tokens = sequences * tokens;
  args.heads = 32;
  args.scale = 0.0884f;
  args.k = k.view;
  args.v = v.view;
  args.segments = segments.data();
  args.segment_count = sequences;
  const double seconds =
      cuda_bench::MedianSeconds(4, [&](int, cudaStream_t stream) { kernel(args, stream); });
  // Two products over the causal half.
  report.Operations(std::string("attention prefill ") + name + " kv" + std::to_string(bits),
                    std::to_string(sequences) + " x " + std::to_string(tokens) + " x 32/" +
                        std::to_string(kv_heads),
                    seconds,
                    4.0 * 128 * 32 * static_cast<double>(sequences) * static_cast<double>(tokens) *
                        static_cast<double>(tokens) / 2);
}

void Prefill(cuda_bench::Report& report) {
  for (const int bits : {4, 16}) {
    PrefillRow(report, "mma", cuda::AttentionPrefillMma, bits, 1, 2048, 32);
    if (CurrentCudaDevice().sm_version != 90) continue;
    const auto wgmma = cuda::AttentionPrefillWgmma;
    PrefillRow(report, "wgmma", wgmma, bits, 1, 2048, 32);
    PrefillRow(report, "wgmma", wgmma, bits, 1, 2048, 8);
    PrefillRow(report, "wgmma", wgmma, bits, 1, 8192, 32);
    PrefillRow(report, "wgmma", wgmma, bits, 16, 128, 32);
  }
}

const cuda_bench::Registration kDecode("attention decode", Decode);
const cuda_bench::Registration kPrefill("attention prefill", Prefill);

}  // namespace
}  // namespace flatquant
