#include <fmt/format.h>

#include <set>

#include "flatquant/bench/cuda/gpu_operations.h"
#include "flatquant/kernels/gemm_float/cuda_gemm_float.h"
#include "flatquant/kernels/gemm_float/cuda_gemm_w4a16.h"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

// From this many tokens on a product is bound by arithmetic.
constexpr int64_t kManyTokens = 256;

class LinearBench {
 public:
  LinearBench(const Plan& plan, LimitedResults* results) : plan_(plan), results_(results) {}

  void RunShape(LinearShape shape, int64_t tokens) {
    shape_ = shape;
    tokens_ = tokens;
    Integers();
    WeightOnly();
    Floats();
  }

 private:
  void Add(const char* variant, double weight_bytes, int copies, Ceiling (*peak)(const Limits&),
           const std::function<void(int, cudaStream_t)>& launch) {
    const bool is_many = tokens_ >= kManyTokens;
    const auto parameters = static_cast<double>(shape_.rows * shape_.cols);
    Result result;
    result.bench = "linear";
    result.variant = variant;
    result.test = fmt::format("{}x{} m{}", shape_.rows, shape_.cols, tokens_);
    result.batch = tokens_;
    result.bytes = static_cast<uint64_t>(weight_bytes);
    result.parameters = static_cast<uint64_t>(parameters);
    AddGpuResult(std::move(result), plan_, copies,
                 is_many ? 2 * parameters * static_cast<double>(tokens_) : weight_bytes,
                 is_many ? peak : ReadBandwidth, launch, results_);
  }

  size_t padded_rows() const { return static_cast<size_t>(CudaGemmIntPaddedRows(shape_.rows)); }

  void Integers() {
    const auto bytes = static_cast<size_t>(CudaGemmIntPackedBytes(shape_.rows, shape_.cols));
    const int copies = GpuCopies(bytes);
    const auto packed = cuda_bench::RandomBytes(bytes * static_cast<size_t>(copies), 1);
    const auto scale = cuda_bench::RandomScales(padded_rows(), 2);
    const int64_t stride = RoundUpTo(shape_.cols, 64);
    const auto codes = cuda_bench::RandomCodes(static_cast<size_t>(tokens_ * stride), 3);
    const auto act_scale = cuda_bench::RandomScales(static_cast<size_t>(tokens_), 4);
    const int64_t y_stride = RoundUpTo(shape_.rows, 8);
    const DeviceBuffer<uint16_t> y(static_cast<size_t>(tokens_ * y_stride));
    Add("w4a4", static_cast<double>(bytes), copies, IntegerPeak, [&](int i, cudaStream_t stream) {
      CudaGemmIntArgs args;
      args.act = codes.get();
      args.act_stride = stride;
      args.act_scale = act_scale.get();
      args.tokens = tokens_;
      args.weights = {shape_.rows, shape_.cols,
                      packed.get() + static_cast<size_t>(i % copies) * bytes, scale.get(), nullptr};
      args.y = y.get();
      args.y_stride = y_stride;
      CudaGemmInt(args, stream);
    });
  }

  void WeightOnly() {
    if (shape_.cols % 8 != 0) return;  // the kernel's contract
    const auto bytes = static_cast<size_t>(CudaGemmIntPackedBytes(shape_.rows, shape_.cols));
    const int copies = GpuCopies(bytes);
    const auto packed = cuda_bench::RandomBytes(bytes * static_cast<size_t>(copies), 1);
    const auto scale = cuda_bench::RandomScales(padded_rows(), 2);
    const auto x = cuda_bench::RandomHalves(static_cast<size_t>(tokens_ * shape_.cols), 3);
    const DeviceBuffer<uint16_t> y(static_cast<size_t>(tokens_ * shape_.rows));
    Add("w4a16", static_cast<double>(bytes), copies, FloatPeak, [&](int i, cudaStream_t stream) {
      CudaGemmW4A16Args args;
      args.x = x.get();
      args.x_stride = shape_.cols;
      args.tokens = tokens_;
      args.weights = {shape_.rows, shape_.cols,
                      packed.get() + static_cast<size_t>(i % copies) * bytes, scale.get(), nullptr};
      args.y = y.get();
      args.y_stride = shape_.rows;
      CudaGemmW4A16(args, stream);
    });
  }

  void Floats() {
    const auto elements = static_cast<size_t>(shape_.rows * shape_.cols);
    const int copies = GpuCopies(2 * elements);
    const auto weight = cuda_bench::RandomHalves(elements * static_cast<size_t>(copies), 1);
    const auto x = cuda_bench::RandomHalves(static_cast<size_t>(tokens_ * shape_.cols), 3);
    const DeviceBuffer<uint16_t> y(static_cast<size_t>(tokens_ * shape_.rows));
    CudaGemmFloatArgs args;
    args.dtype = args.y_dtype = DType::kBF16;
    args.x = x.get();
    args.x_stride = args.cols = shape_.cols;
    args.tokens = tokens_;
    args.rows = args.y_stride = shape_.rows;
    args.weight = weight.get();
    args.y = y.get();
    gemm_(args, nullptr);  // chooses the algorithm
    Add("bf16", 2.0 * static_cast<double>(elements), copies, FloatPeak,
        [&](int i, cudaStream_t stream) {
          args.weight = weight.get() + static_cast<size_t>(i % copies) * elements;
          gemm_(args, stream);
        });
  }

  const Plan& plan_;
  LimitedResults* results_;
  CudaGemmFloat gemm_;
  LinearShape shape_{};
  int64_t tokens_ = 0;
};

}  // namespace

void RunGpuLinears(const ModelConfig& config, const Plan& plan, Run* run) {
  LimitedResults results = GpuResults();
  LinearBench bench(plan, &results);
  std::set<std::pair<int64_t, int64_t>> seen;
  for (Linear linear : kLinears) {
    const LinearShape shape = ShapeOf(config, linear);
    if (!seen.emplace(shape.rows, shape.cols).second) continue;
    for (const std::vector<int64_t>* counts : {&plan.batches, &plan.prompts}) {
      for (int64_t tokens : *counts) {
        if (tokens > 0) bench.RunShape(shape, tokens);
      }
    }
  }
  results.Finish(run);
}

}  // namespace flatquant::bench
