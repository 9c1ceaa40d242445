#include "flatquant/runtime/cuda/cuda_backend.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/sampling.h"
#include "flatquant/kernels/cuda/token_scores.h"
#include "flatquant/kernels/embedding/cuda_embedding.h"
#include "flatquant/runtime/block_flow.h"
#include "flatquant/runtime/cuda/cuda_device.h"
#include "flatquant/runtime/cuda/cuda_pass.h"

namespace flatquant {
namespace {

// Enough rows to keep every multiprocessor busy; a 7B network's pass takes 1 GB.
constexpr int64_t kPassRows = 8192;
// Logits in memory at once, 256 MB.
constexpr int64_t kLogits = int64_t{1} << 26;
// A cache's capacity is a multiple of this many positions (CudaKvPlane).
constexpr int64_t kPositions = 32;

// A captured decode step. It reads ids, positions, slots and lengths from memory, so it
// serves as long as nothing moves.
struct StepGraph {
  cudaGraphExec_t exec = nullptr;
  StepGraph() = default;
  ~StepGraph() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
  StepGraph(const StepGraph&) = delete;
  StepGraph& operator=(const StepGraph&) = delete;
};

class CudaBackend : public Backend {
 public:
  // ordinal: of the current device.
  CudaBackend(int ordinal, PackedModel model, DType dtype, ThreadPool& pool)
      : ordinal_(ordinal),
        integers_(AllIntegers(model)),
        model_(LoadCudaModel(std::move(model), dtype, pool)) {
    // Waits for copies of the default stream, which uploads use.
    FLATQUANT_CUDA(cudaStreamCreate(&stream_));
    FLATQUANT_CUDA(cudaEventCreateWithFlags(&uploaded_, cudaEventDisableTiming));
  }
  ~CudaBackend() override {
    steps_.clear();
    cudaEventDestroy(uploaded_);
    cudaStreamDestroy(stream_);
  }

  const ModelConfig& config() const override { return model_.config; }

  WeightBytes weight_bytes() const override {
    WeightBytes bytes;
    for (const CudaBlock& block : model_.blocks) bytes.blocks += block.bytes();
    bytes.per_pass = bytes.blocks + model_.head_bytes() + model_.final_norm.bytes();
    bytes.all = bytes.per_pass + (model_.lm_head.size() > 0 ? model_.embedding.bytes() : 0);
    return bytes;
  }

  uint64_t device_memory() const override { return device_buffer_bytes; }
  bool multiplies_integers() const override { return integers_; }
  int64_t max_rows() const override { return kPassRows; }

  std::unique_ptr<SequenceCache> MakeCache(int64_t capacity) override {
    UseDevice();
    capacity = RoundUpTo(capacity, kPositions);
    ReserveRotation(capacity);
    std::shared_ptr<CudaSlotPool>& pool = pools_[capacity];
    if (pool == nullptr) pool = std::make_shared<CudaSlotPool>(model_, capacity);
    return std::make_unique<CudaSequenceCache>(pool);
  }

  void Run(std::span<const Segment> segments, std::span<const int32_t> ids,
           Profile* profile) override {
    UseDevice();
    const int64_t rows = static_cast<int64_t>(ids.size());
    ReserveWorkspace(rows);
    CutIntoRuns(segments, &runs_);
    ReserveAttention();
    UploadRows(segments, ids);
    pass_.emplace(CudaOps::Pass{model_,
                                runs_,
                                {workspace_->inputs.get(), rows},
                                rotation_,
                                *workspace_,
                                gemm_,
                                stream_,
                                profile});
    // A step of one pool's sequences is worth a graph: its kernels are short.
    if (runs_.size() == 1 && runs_[0].is_decode() && profile == nullptr) {
      RunStep();
    } else {
      RunBlocks();
    }
  }

  void Logits(std::span<const int64_t> rows, float* logits) override {
    ForLogits(rows, [&](size_t begin, size_t count) {
      const size_t vocab = static_cast<size_t>(model_.config.vocab);
      FLATQUANT_CUDA(cudaMemcpyAsync(logits + begin * vocab, logits_.get(),
                                     count * vocab * sizeof(float), cudaMemcpyDeviceToHost,
                                     stream_));
      FLATQUANT_CUDA(cudaStreamSynchronize(stream_));
    });
  }

  void Scores(std::span<const int64_t> rows, std::span<const int32_t> targets,
              std::span<TokenScore> scores) override {
    ForLogits(rows, [&](size_t begin, size_t count) {
      const DeviceBuffer<int32_t> wanted(
          std::vector<int32_t>(targets.begin() + static_cast<std::ptrdiff_t>(begin),
                               targets.begin() + static_cast<std::ptrdiff_t>(begin + count)));
      const DeviceBuffer<float> nll(count);
      const DeviceBuffer<int32_t> top(count);
      CudaTokenScores({logits_.get(), static_cast<int64_t>(count), model_.config.vocab,
                       wanted.get(), nll.get(), top.get()},
                      stream_);
      const std::vector<float> losses = nll.Download();
      const std::vector<int32_t> tops = top.Download();
      for (size_t i = 0; i < count; ++i) {
        scores[begin + i] = {losses[i], tops[i] == targets[begin + i]};
      }
    });
  }

  void Sample(std::span<const int64_t> rows, std::span<Sampler* const> samplers,
              std::span<int32_t> tokens) override {
    ForLogits(rows, [&](size_t begin, size_t count) { Draw(samplers, begin, count, tokens); });
  }

 private:
  // The current device is a thread's own, and any thread may call.
  void UseDevice() const { UseCudaDevice(ordinal_); }

  static bool AllIntegers(const PackedModel& model) {
    for (const PackedBlock& block : model.blocks) {
      for (Linear which : kLinears) {
        const PackedLinear& linear = block.linear(which);
        const bool is_integer = linear.bits <= 4 && !linear.is_grouped();
        if (!is_integer || block.site(SiteOf(which)).act_bits > 8) return false;
      }
    }
    return true;
  }

  // Draws for the rows of logits_ that stand for rows [begin, begin + count) of a pass.
  void Draw(std::span<Sampler* const> samplers, size_t begin, size_t count,
            std::span<int32_t> tokens) {
    // Both stay on the host: a step would wait longer for copies than the kernel for some words.
    if (drawn_.size() < count) {
      drawn_ = PinnedBuffer<int32_t>(count);
      uniform_ = PinnedBuffer<float>(count);
    }
    for (size_t i = 0; i < count; ++i) {
      Sampler& sampler = *samplers[begin + i];
      // A double just below 1 would round to 1.
      if (sampler.options().temperature > 0) {
        uniform_[i] = std::min(static_cast<float>(sampler.Uniform()), std::nextafter(1.0f, 0.0f));
      }
    }
    const auto same = [&](size_t a, size_t b) {
      const SamplerOptions& x = samplers[begin + a]->options();
      const SamplerOptions& y = samplers[begin + b]->options();
      return x.temperature == y.temperature && x.top_k == y.top_k && x.top_p == y.top_p;
    };
    for (size_t first = 0, end = 0; first < count; first = end) {
      for (end = first + 1; end < count && same(first, end);) ++end;
      const SamplerOptions& options = samplers[begin + first]->options();
      const size_t vocab = static_cast<size_t>(model_.config.vocab);
      CudaSample({logits_.get() + first * vocab, static_cast<int64_t>(end - first),
                  model_.config.vocab, options.temperature, options.top_k, options.top_p,
                  uniform_.get() + first, drawn_.get() + first},
                 stream_);
    }
    FLATQUANT_CUDA(cudaStreamSynchronize(stream_));
    std::copy_n(drawn_.get(), count, tokens.begin() + static_cast<std::ptrdiff_t>(begin));
    for (size_t i = begin; i < begin + count; ++i) {
      if (tokens[i] >= 0) continue;
      throw Error("sampler.bad_logits", "logits", "one is NaN, or none is finite",
                  model_.dtype == DType::kF16
                      ? "activations may exceed the range of f16: use --precision bf16"
                      : "the model's weights are damaged");
    }
  }

  // Grown by doubling, so that batches that grow by one do not move it each time.
  void ReserveWorkspace(int64_t rows) {
    if (workspace_ && workspace_->rows >= rows) return;
    const int64_t wanted =
        workspace_ ? std::min(kPassRows, std::max(rows, 2 * workspace_->rows)) : rows;
    FLATQUANT_CUDA(cudaStreamSynchronize(stream_));
    pass_.reset();
    steps_.clear();
    workspace_.reset();
    workspace_.emplace(model_, wanted);
  }

  void ReserveAttention() {
    const size_t bytes = CudaAttentionBytes(model_, runs_);
    if (workspace_->attention.size() >= bytes) return;
    FLATQUANT_CUDA(cudaStreamSynchronize(stream_));
    steps_.clear();
    workspace_->attention = DeviceBuffer<uint8_t>(bytes);
  }

  void ReserveRotation(int64_t positions) {
    if (rotation_.positions >= positions) return;
    const size_t half = model_.rope_frequencies.size();
    std::vector<float> cos(static_cast<size_t>(positions) * half);
    std::vector<float> sin(cos.size());
    for (size_t p = 0; p < static_cast<size_t>(positions); ++p) {
      for (size_t i = 0; i < half; ++i) {
        // As on the CPU: the angle in float, its sine and cosine exactly.
        const float angle = static_cast<float>(p) * static_cast<float>(model_.rope_frequencies[i]);
        cos[p * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
        sin[p * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
      }
    }
    FLATQUANT_CUDA(cudaStreamSynchronize(stream_));
    steps_.clear();
    rotation_ = {positions, DeviceBuffer<float>(cos), DeviceBuffer<float>(sin)};
    FLATQUANT_CUDA(cudaDeviceSynchronize());  // as weights, complete before kernels start
  }

  void UploadRows(std::span<const Segment> segments, std::span<const int32_t> ids) {
    const size_t rows = ids.size();
    const size_t count = rows * CudaRows::kFields;
    FLATQUANT_CUDA(cudaEventSynchronize(uploaded_));  // the last pass's copy has been made
    if (inputs_.size() < count) inputs_ = PinnedBuffer<int32_t>(count);
    std::copy(ids.begin(), ids.end(), inputs_.get());
    for (const Segment& segment : segments) {
      const int32_t slot = static_cast<const CudaSequenceCache&>(*segment.cache).slot();
      for (int64_t t = 0; t < segment.tokens; ++t) {
        const size_t row = static_cast<size_t>(segment.row_begin + t);
        const int32_t position = static_cast<int32_t>(segment.first_position + t);
        inputs_[rows + row] = position;
        inputs_[2 * rows + row] = slot;
        inputs_[3 * rows + row] = position + 1;
      }
    }
    FLATQUANT_CUDA(cudaMemcpyAsync(workspace_->inputs.get(), inputs_.get(), count * sizeof(int32_t),
                                   cudaMemcpyHostToDevice, stream_));
    FLATQUANT_CUDA(cudaEventRecord(uploaded_, stream_));
  }

  void RunBlocks() {
    CudaEmbedRows(*pass_);
    for (size_t layer = 0; layer < model_.blocks.size(); ++layer) {
      CudaOps ops(*pass_, layer);
      RunBlock(ops);
    }
  }

  // A step's first run asks libraries for algorithms and memory; the second is
  // captured; the others replay it.
  void RunStep() {
    const StepKey key{runs_[0].pool, runs_[0].pool->generation(), pass_->rows.rows};
    const auto [entry, is_new] = steps_.try_emplace(key);
    if (is_new) return RunBlocks();
    StepGraph& step = entry->second;
    if (step.exec == nullptr) {
      cudaGraph_t graph = nullptr;
      FLATQUANT_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
      RunBlocks();
      FLATQUANT_CUDA(cudaStreamEndCapture(stream_, &graph));
      const cudaError_t status = cudaGraphInstantiate(&step.exec, graph, 0);
      cudaGraphDestroy(graph);
      CheckCuda(status, "cudaGraphInstantiate");
    }
    FLATQUANT_CUDA(cudaGraphLaunch(step.exec, stream_));
  }

  // The stream's rows [begin, begin + count) of those wanted, side by side.
  const uint16_t* Gather(std::span<const int64_t> rows) {
    bool in_place = true;
    for (size_t i = 0; i < rows.size(); ++i) {
      in_place = in_place && rows[i] == rows[0] + static_cast<int64_t>(i);
    }
    const int64_t hidden = model_.config.hidden;
    if (in_place) return workspace_->stream.get() + rows[0] * hidden;
    const DeviceBuffer<int32_t> index(std::vector<int32_t>(rows.begin(), rows.end()));
    CudaEmbedding({workspace_->stream.get(), pass_->rows.rows, index.get(),
                   static_cast<int64_t>(rows.size()), hidden, workspace_->gathered.get()},
                  stream_);
    FLATQUANT_CUDA(cudaStreamSynchronize(stream_));  // `index` goes now
    return workspace_->gathered.get();
  }

  // Calls use(begin, count) for pieces of the rows when their logits are in logits_.
  template <typename Use>
  void ForLogits(std::span<const int64_t> rows, const Use& use) {
    const size_t piece = std::min(
        rows.size(), static_cast<size_t>(std::max<int64_t>(1, kLogits / model_.config.vocab)));
    const size_t needed = piece * static_cast<size_t>(model_.config.vocab);
    if (logits_.size() < needed) logits_ = DeviceBuffer<float>(needed);
    for (size_t begin = 0; begin < rows.size(); begin += piece) {
      const size_t count = std::min(piece, rows.size() - begin);
      CudaComputeLogits(*pass_, Gather(rows.subspan(begin, count)), static_cast<int64_t>(count),
                        logits_.get());
      use(begin, count);
    }
  }

  using StepKey = std::tuple<const CudaSlotPool*, uint64_t, int64_t>;

  int ordinal_;
  bool integers_;
  CudaModel model_;
  CudaStream stream_ = nullptr;
  CudaGemmFloat gemm_;
  std::map<int64_t, std::shared_ptr<CudaSlotPool>> pools_;  // by capacity
  CudaRotation rotation_;
  std::optional<CudaWorkspace> workspace_;
  DeviceBuffer<float> logits_;
  PinnedBuffer<float> uniform_;
  PinnedBuffer<int32_t> drawn_;
  PinnedBuffer<int32_t> inputs_;
  cudaEvent_t uploaded_ = nullptr;
  std::vector<CudaRun> runs_;
  std::optional<CudaOps::Pass> pass_;
  std::map<StepKey, StepGraph> steps_;
};

}  // namespace

std::unique_ptr<Backend> MakeCudaBackend(PackedModel model, const std::string& device, DType dtype,
                                         ThreadPool& pool) {
  const int ordinal = ParseCudaDevice(device);
  UseCudaDevice(ordinal);
  return std::make_unique<CudaBackend>(ordinal, std::move(model), dtype, pool);
}

}  // namespace flatquant
