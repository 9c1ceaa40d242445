#include <fmt/format.h>

#include <numeric>

#include "flatquant/bench/cuda/gpu_operations.h"
#include "flatquant/bench/synthetic_model.h"
#include "flatquant/kernels/cuda/sampling.h"
#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

class KernelBench {
 public:
  KernelBench(const ModelConfig& config, const Plan& plan, LimitedResults* results)
      : config_(config), plan_(plan), results_(results) {}

  void AllFor(int64_t tokens) {
    for (Site site : kSites) OneSite(site, tokens);
    Heads(tokens);
    Sampling(tokens);
  }

 private:
  // bytes: read and written by a launch.
  void Add(const std::string& variant, int64_t tokens, int copies, double bytes,
           const std::function<void(int, cudaStream_t)>& launch) {
    Result result;
    result.bench = "kernel";
    result.variant = variant;
    result.test = fmt::format("m{}", tokens);
    result.batch = tokens;
    AddGpuResult(std::move(result), plan_, copies, bytes, ReadBandwidth, launch, results_);
  }

  // Norm or SwiGLU, Kronecker transform, 4-bit quantization; then without the transform.
  void OneSite(Site site, int64_t tokens) {
    const int64_t width = SiteWidth(config_, site);
    const bool mixes_heads = site == Site::kAttnOut;
    const Factors factors =
        mixes_heads ? Factors{config_.heads, config_.head_dim} : NearestFactors(width);
    const int64_t stride = RoundUpTo(width, 64);
    const auto elements = static_cast<size_t>(tokens * stride);
    const double inputs = site == Site::kMlpOut ? 2 : 1;
    const double bytes = static_cast<double>(tokens * width) * (2 * inputs + 1);
    const int copies = GpuCopies(static_cast<uint64_t>(bytes));
    const auto x = cuda_bench::RandomHalves(2 * elements * static_cast<size_t>(copies), 1);
    const auto weight = cuda_bench::RandomHalves(static_cast<size_t>(stride), 2);
    const auto packed = cuda_bench::RandomHalves(
        static_cast<size_t>(CudaKronPackedBytes(factors.left, factors.right) / 2), 3);
    const DeviceBuffer<int8_t> codes(elements);
    const DeviceBuffer<float> scales(static_cast<size_t>(tokens));
    CudaKronQuantizeArgs args;
    if (site == Site::kMlpOut) args.input = CudaSiteInput::kSwiglu;
    if (site == Site::kAttnIn || site == Site::kMlpIn) args.input = CudaSiteInput::kRmsNorm;
    args.norm_weight = weight.get();
    args.x_stride = args.code_stride = stride;
    args.width = width;
    args.tokens = tokens;
    args.codes = codes.get();
    args.scales = scales.get();
    const auto launch = [&](int i, cudaStream_t stream) {
      const uint16_t* from = x.get() + static_cast<size_t>(i % copies) * 2 * elements;
      args.x = from;
      args.up = from + elements;
      CudaKronQuantize(args, stream);
    };
    args.transform = {factors.left, factors.right, packed.get()};
    Add(fmt::format("{} {}x{}", SiteName(site), factors.left, factors.right), tokens, copies, bytes,
        launch);
    args.transform = {};
    Add(fmt::format("{} quantize", SiteName(site)), tokens, copies, bytes, launch);
  }

  // Rotation and transform of Q and K, K and V packed: each token of a sequence of its own.
  void Heads(int64_t tokens) {
    constexpr int64_t kCapacity = 32;
    const int64_t heads = config_.heads + 2 * config_.kv_heads;
    const int64_t stride = heads * config_.head_dim;
    const auto qkv = cuda_bench::RandomHalves(static_cast<size_t>(tokens * stride), 1);
    const auto transform =
        cuda_bench::RandomHalves(static_cast<size_t>(config_.head_dim * config_.head_dim), 2);
    const auto vectors = static_cast<size_t>(tokens * config_.kv_heads * kCapacity);
    const size_t plane = vectors * static_cast<size_t>(config_.head_dim) / 2;
    const DeviceBuffer<uint8_t> data(2 * plane), zero(2 * vectors);
    const DeviceBuffer<uint16_t> scale(2 * vectors);
    const auto angles =
        cuda_bench::RandomScales(static_cast<size_t>(kCapacity * config_.head_dim / 2), 3);
    std::vector<int32_t> order(static_cast<size_t>(tokens));
    std::iota(order.begin(), order.end(), 0);
    const DeviceBuffer<int32_t> slots(order);
    const DeviceBuffer<int32_t> positions(std::vector<int32_t>(order.size(), 1));
    const DeviceBuffer<uint16_t> q(static_cast<size_t>(tokens * config_.q_width()));
    CudaQuantizeKvArgs args;
    args.qkv = qkv.get();
    args.qkv_stride = stride;
    args.tokens = tokens;
    args.heads = config_.heads;
    args.positions = positions.get();
    args.slots = slots.get();
    args.cos = args.sin = angles.get();
    args.q_transform = args.k_transform = transform.get();
    args.k = {4,          config_.kv_heads, config_.head_dim, kCapacity,
              data.get(), scale.get(),      zero.get()};
    args.v = args.k;
    args.v.data += plane;
    args.v.scale += vectors;
    args.v.zero += vectors;
    args.q = q.get();
    const double bytes =
        static_cast<double>(tokens) *
        static_cast<double>(2 * stride + 2 * config_.q_width() + config_.kv_width());
    Add("quantize_kv", tokens, 1, bytes,
        [&](int, cudaStream_t stream) { CudaQuantizeKv(args, stream); });
  }

  void Sampling(int64_t tokens) {
    const auto logits = cuda_bench::RandomScales(static_cast<size_t>(tokens * config_.vocab), 1);
    const DeviceBuffer<int32_t> drawn(static_cast<size_t>(tokens));
    Add("sample, greedy", tokens, 1, 4.0 * static_cast<double>(tokens * config_.vocab),
        [&](int, cudaStream_t stream) {
          CudaSampleArgs args;
          args.logits = logits.get();
          args.rows = tokens;
          args.vocab = config_.vocab;
          args.tokens = drawn.get();
          CudaSample(args, stream);
        });
  }

  const ModelConfig& config_;
  const Plan& plan_;
  LimitedResults* results_;
};

}  // namespace

void RunGpuKernels(const ModelConfig& config, const Plan& plan, Run* run) {
  LimitedResults results = GpuResults();
  KernelBench bench(config, plan, &results);
  for (int64_t batch : plan.batches) bench.AllFor(batch);
  for (int64_t prompt : plan.prompts) {
    if (prompt > 0) bench.AllFor(prompt);
  }
  results.Finish(run);
}

}  // namespace flatquant::bench
