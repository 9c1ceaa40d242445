#include "flatquant/runtime/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>
#include <variant>

#include "flatquant/kernels/isa.h"
#include "flatquant/runtime/block_forward.h"
#include "flatquant/runtime/head.h"
#include "flatquant/runtime/kv_cache.h"
#include "flatquant/runtime/loaded_model.h"

namespace flatquant {
namespace {

// Few enough rows for activations to stay in the caches.
constexpr int64_t kPassRows = 512;

class CpuBackend : public Backend {
 public:
  CpuBackend(PackedModel model, GemmFloatMath math, ThreadPool& pool)
      : pool_(pool), model_(LoadModel(std::move(model), math, pool)) {}

  const ModelConfig& config() const override { return model_.config; }
  WeightBytes weight_bytes() const override {
    return {model_.bytes(), model_.bytes_per_pass(), model_.block_bytes()};
  }
  bool multiplies_integers() const override {
    for (const LoadedBlock& block : model_.blocks) {
      for (const LoadedLinear& linear : block.linears) {
        if (!std::holds_alternative<GemmIntWeights>(linear.weights)) return false;
      }
    }
    return true;
  }
  int64_t max_rows() const override { return kPassRows; }

  std::unique_ptr<SequenceCache> MakeCache(int64_t capacity) override {
    return std::make_unique<KvCache>(model_, capacity);
  }

  void Run(std::span<const Segment> segments, std::span<const int32_t> ids,
           Profile* profile) override {
    const int64_t rows = static_cast<int64_t>(ids.size());
    if (!workspace_ || workspace_->tokens < rows) {
      workspace_.reset();
      workspace_.emplace(model_, rows);
    }
    workspace_->profile = profile;
    std::copy(ids.begin(), ids.end(), workspace_->ids.data());
    RunSegments(model_, segments, rows, *workspace_, pool_);
  }

  void Logits(std::span<const int64_t> rows, float* logits) override {
    const PhaseTimer timer(workspace_->profile, Phase::kHead);
    ComputeLogits(model_, Gather(rows), static_cast<int64_t>(rows.size()), logits, workspace_->site,
                  pool_);
  }

  void Scores(std::span<const int64_t> rows, std::span<const int32_t> targets,
              std::span<TokenScore> scores) override {
    const PhaseTimer timer(workspace_->profile, Phase::kHead);
    ComputeTokenScores(model_, Gather(rows), targets, scores, logit_slice_, workspace_->site,
                       pool_);
  }

  void Sample(std::span<const int64_t> rows, std::span<Sampler* const> samplers,
              std::span<int32_t> tokens) override {
    const size_t vocab = static_cast<size_t>(model_.config.vocab);
    const size_t needed = rows.size() * vocab;
    if (logits_.size() < needed) logits_ = AlignedBuffer<float>(needed);
    Logits(rows, logits_.data());
    for (size_t i = 0; i < rows.size(); ++i) {
      tokens[i] = samplers[i]->Next({logits_.data() + i * vocab, vocab});
    }
  }

 private:
  // The rows, moved to the front of the stream: rows[i] >= i, since they rise.
  const float* Gather(std::span<const int64_t> rows) {
    const size_t hidden = static_cast<size_t>(model_.config.hidden);
    float* stream = workspace_->stream.data();
    for (size_t i = 0; i < rows.size(); ++i) {
      const size_t row = static_cast<size_t>(rows[i]);
      if (row == i) continue;
      std::memmove(stream + i * hidden, stream + row * hidden, hidden * sizeof(float));
    }
    return stream;
  }

  ThreadPool& pool_;
  LoadedModel model_;
  std::optional<Workspace> workspace_;
  AlignedBuffer<float> logit_slice_;
  AlignedBuffer<float> logits_;  // of rows that are sampled
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(PackedModel model, GemmFloatMath math, ThreadPool& pool) {
  IsaLimit();  // a bad FLATQUANT_ISA is reported here
  return std::make_unique<CpuBackend>(std::move(model), math, pool);
}

}  // namespace flatquant
