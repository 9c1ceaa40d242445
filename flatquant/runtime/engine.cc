#include "flatquant/runtime/engine.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/kernels/isa.h"
#include "flatquant/runtime/block_forward.h"
#include "flatquant/runtime/head.h"
#include "flatquant/runtime/kv_cache.h"
#include "flatquant/runtime/loaded_model.h"
#include "flatquant/runtime/plain_model.h"

namespace flatquant {
namespace {

// A longer text goes through the network in pieces of this many tokens: enough to
// amortise reading the weights, few enough for activations to stay in the caches
// and for memory to stay bounded.
constexpr int64_t kChunkTokens = 512;

}  // namespace

struct Sequence::State {
  KvCache cache;
  int64_t length = 0;
};

struct Engine::State {
  std::unique_ptr<ThreadPool> pool;
  LoadedModel model;
  // Scratch of the running call; one call runs at a time. It only grows, so that
  // calls of one size allocate nothing after the first.
  std::optional<Workspace> workspace;
  AlignedBuffer<float> logits;
  AlignedBuffer<float> logit_slice;
  std::vector<TokenScore> scores;
  Profile* profile = nullptr;
  // The pass that is being put together: segments and the rows that they take.
  std::vector<Segment> segments;
  int64_t rows = 0;

  // Starts a pass of at most kChunkTokens rows, `wanted` tokens being left to run.
  void BeginPass(size_t wanted) {
    const int64_t tokens = std::min(kChunkTokens, static_cast<int64_t>(wanted));
    if (!workspace || workspace->tokens < tokens) {
      workspace.reset();
      workspace.emplace(model, tokens);
    }
    segments.clear();
    rows = 0;
  }

  // Appends as many of the tokens to the sequence as the pass has room for, and
  // returns their number.
  size_t AddToPass(Sequence::State& sequence, std::span<const int32_t> tokens) {
    const int64_t count = std::min(kChunkTokens - rows, static_cast<int64_t>(tokens.size()));
    segments.push_back({&sequence.cache, sequence.length, rows, count});
    std::copy_n(tokens.data(), count, workspace->ids.data() + rows);
    sequence.length += count;
    rows += count;
    return static_cast<size_t>(count);
  }

  // Runs the pass; the result is the returned residual stream, [rows, hidden].
  float* RunPass() {
    workspace->profile = profile;
    RunSegments(model, segments, rows, *workspace, *pool);
    return workspace->stream.data();
  }

  // logits [tokens, vocab] of the stream's first rows.
  void FinishPass(const float* stream, int64_t tokens, float* out) {
    const PhaseTimer timer(profile, Phase::kHead);
    ComputeLogits(model, stream, tokens, out, workspace->site, *pool);
  }

  void FinishPass(const float* stream, std::span<const int32_t> targets,
                  std::span<TokenScore> results) {
    const PhaseTimer timer(profile, Phase::kHead);
    ComputeTokenScores(model, stream, targets, results, logit_slice, workspace->site, *pool);
  }

  float* LogitsFor(size_t tokens) {
    const size_t needed = tokens * static_cast<size_t>(model.config.vocab);
    if (logits.size() < needed) logits = AlignedBuffer<float>(needed);
    return logits.data();
  }
};

namespace {

void CheckIds(const ModelConfig& config, std::span<const int32_t> tokens) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < config.vocab) continue;
    throw Error("runtime.bad_token", "token " + std::to_string(i),
                "id " + std::to_string(tokens[i]) + " is outside the vocabulary of " +
                    std::to_string(config.vocab),
                "use the tokenizer that belongs to the model");
  }
}

void CheckTokens(const ModelConfig& config, std::span<const int32_t> tokens, int64_t length,
                 int64_t capacity) {
  if (static_cast<int64_t>(tokens.size()) > capacity - length) {
    throw Error("runtime.context_full", "sequence",
                std::to_string(length) + " tokens and " + std::to_string(tokens.size()) +
                    " new ones exceed its capacity of " + std::to_string(capacity),
                "use a shorter text or a longer context");
  }
  CheckIds(config, tokens);
}

}  // namespace

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Engine::~Engine() = default;

std::unique_ptr<Engine> Engine::Open(const std::filesystem::path& directory,
                                     const EngineOptions& options) {
  if (IsPackedDirectory(directory)) return FromPacked(ReadPackedModel(directory), options);
  return FromSource(SourceModel::Open(directory), options);
}

std::unique_ptr<Engine> Engine::FromPacked(PackedModel model, const EngineOptions& options) {
  IsaLimit();  // a bad FLATQUANT_ISA is reported here
  auto state = std::make_unique<State>();
  state->pool = std::make_unique<ThreadPool>(options.threads);
  const GemmFloatMath math =
      options.precision == Precision::kBF16 ? GemmFloatMath::kBF16 : GemmFloatMath::kF32;
  state->model = LoadModel(std::move(model), math, *state->pool);
  return std::unique_ptr<Engine>(new Engine(std::move(state)));
}

std::unique_ptr<Engine> Engine::FromSource(const SourceModel& model, const EngineOptions& options) {
  return FromPacked(PlainModel(model), options);
}

const ModelConfig& Engine::config() const { return state_->model.config; }
ThreadPool& Engine::pool() const { return *state_->pool; }
uint64_t Engine::weight_bytes() const { return state_->model.bytes(); }
uint64_t Engine::bytes_per_pass() const { return state_->model.bytes_per_pass(); }
uint64_t Engine::block_bytes() const { return state_->model.block_bytes(); }
bool Engine::multiplies_integers() const {
  for (const LoadedBlock& block : state_->model.blocks) {
    for (const LoadedLinear& linear : block.linears) {
      if (!std::holds_alternative<GemmIntWeights>(linear.weights)) return false;
    }
  }
  return true;
}
void Engine::set_profile(Profile* profile) const { state_->profile = profile; }

std::span<const float> Engine::Forward(Sequence& sequence, std::span<const int32_t> tokens,
                                       Logits which) const {
  if (tokens.empty()) return {};
  if (which == Logits::kLast) {
    const BatchItem item{&sequence, tokens};
    return ForwardBatch({&item, 1});
  }
  State& state = *state_;
  Sequence::State& target = *sequence.state_;
  CheckTokens(state.model.config, tokens, target.length, target.cache.capacity());
  const size_t vocab = static_cast<size_t>(state.model.config.vocab);
  float* logits = state.LogitsFor(tokens.size());
  for (size_t begin = 0; begin < tokens.size();) {
    state.BeginPass(tokens.size() - begin);
    const size_t count = state.AddToPass(target, tokens.subspan(begin));
    const float* stream = state.RunPass();
    state.FinishPass(stream, state.rows, logits + begin * vocab);
    begin += count;
  }
  return {logits, tokens.size() * vocab};
}

std::span<const float> Engine::ForwardBatch(std::span<const BatchItem> batch) const {
  State& state = *state_;
  const LoadedModel& model = state.model;
  size_t left = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence::State& target = *batch[i].sequence->state_;
    FLATQUANT_CHECK(!batch[i].tokens.empty());
    for (size_t j = 0; j < i; ++j) FLATQUANT_CHECK(batch[j].sequence != batch[i].sequence);
    CheckTokens(model.config, batch[i].tokens, target.length, target.cache.capacity());
    left += batch[i].tokens.size();
  }
  const size_t vocab = static_cast<size_t>(model.config.vocab);
  const size_t hidden = static_cast<size_t>(model.config.hidden);
  float* logits = state.LogitsFor(batch.size());
  size_t item = 0;  // the first that has tokens left
  size_t used = 0;  // of its tokens
  for (size_t done = 0; item < batch.size(); done = item) {
    state.BeginPass(left);
    std::array<size_t, kChunkTokens> last_rows;  // of the items that end in this pass
    while (item < batch.size() && state.rows < kChunkTokens) {
      const size_t count =
          state.AddToPass(*batch[item].sequence->state_, batch[item].tokens.subspan(used));
      used += count;
      left -= count;
      if (used < batch[item].tokens.size()) break;
      last_rows[item - done] = static_cast<size_t>(state.rows) - 1;
      ++item;
      used = 0;
    }
    float* stream = state.RunPass();
    if (item == done) continue;
    for (size_t i = 0; i < item - done; ++i) {  // to the front; last_rows[i] >= i
      std::memmove(stream + i * hidden, stream + last_rows[i] * hidden, hidden * sizeof(float));
    }
    state.FinishPass(stream, static_cast<int64_t>(item - done), logits + done * vocab);
  }
  return {logits, batch.size() * vocab};
}

void Engine::TokenNll(Sequence& sequence, std::span<const int32_t> tokens,
                      std::span<float> nll) const {
  State& state = *state_;
  Sequence::State& target = *sequence.state_;
  FLATQUANT_CHECK(nll.size() + 1 == tokens.size());
  CheckTokens(state.model.config, tokens, target.length, target.cache.capacity());
  for (size_t begin = 0; begin < tokens.size();) {
    state.BeginPass(tokens.size() - begin);
    const size_t count = state.AddToPass(target, tokens.subspan(begin));
    // The text's last token has no successor to predict.
    const size_t predicted = std::min(count, tokens.size() - 1 - begin);
    state.scores.resize(predicted);
    const float* stream = state.RunPass();
    state.FinishPass(stream, tokens.subspan(begin + 1, predicted), state.scores);
    for (size_t i = 0; i < predicted; ++i) nll[begin + i] = state.scores[i].nll;
    begin += count;
  }
}

void Engine::Score(std::span<const ScoreItem> batch) const {
  State& state = *state_;
  const size_t hidden = static_cast<size_t>(state.model.config.hidden);
  size_t left = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    const ScoreItem& item = batch[i];
    const Sequence::State& target = *item.sequence->state_;
    FLATQUANT_CHECK(!item.tokens.empty() && item.targets.size() <= item.tokens.size());
    FLATQUANT_CHECK(item.scores.size() == item.targets.size());
    for (size_t j = 0; j < i; ++j) FLATQUANT_CHECK(batch[j].sequence != item.sequence);
    CheckTokens(state.model.config, item.tokens, target.length, target.cache.capacity());
    CheckIds(state.model.config, item.targets);
    left += item.tokens.size();
  }
  std::vector<int32_t> targets;  // of the pass
  std::vector<TokenScore> scores;
  std::vector<std::span<TokenScore>> destinations;  // where those go, piece by piece
  size_t item = 0;                                  // the first that has tokens left
  size_t used = 0;                                  // of its tokens
  while (item < batch.size()) {
    state.BeginPass(left);
    std::array<size_t, kChunkTokens> scored_rows;
    targets.clear();
    destinations.clear();
    while (item < batch.size() && state.rows < kChunkTokens) {
      const ScoreItem& current = batch[item];
      const size_t first_row = static_cast<size_t>(state.rows);
      const size_t count = state.AddToPass(*current.sequence->state_, current.tokens.subspan(used));
      const size_t unscored = current.tokens.size() - current.targets.size();
      const size_t begin = std::max(used, unscored);
      for (size_t at = begin; at < used + count; ++at) {
        scored_rows[targets.size()] = first_row + at - used;
        targets.push_back(current.targets[at - unscored]);
      }
      if (begin < used + count) {
        destinations.push_back(current.scores.subspan(begin - unscored, used + count - begin));
      }
      used += count;
      left -= count;
      if (used < current.tokens.size()) break;
      ++item;
      used = 0;
    }
    float* stream = state.RunPass();
    for (size_t i = 0; i < targets.size(); ++i) {  // to the front; scored_rows[i] >= i
      std::memmove(stream + i * hidden, stream + scored_rows[i] * hidden, hidden * sizeof(float));
    }
    scores.resize(targets.size());
    state.FinishPass(stream, targets, scores);
    auto next = scores.begin();
    for (const std::span<TokenScore> destination : destinations) {
      std::copy_n(next, destination.size(), destination.begin());
      next += static_cast<std::ptrdiff_t>(destination.size());
    }
  }
}

Sequence::Sequence(const Engine& engine, int64_t capacity) {
  if (capacity <= 0) {
    throw Error("runtime.capacity", "sequence",
                "a capacity of " + std::to_string(capacity) + " tokens holds nothing",
                "ask for at least one");
  }
  state_ = std::make_unique<State>(State{KvCache(engine.state_->model, capacity)});
}
Sequence::~Sequence() = default;

int64_t Sequence::length() const { return state_->length; }
int64_t Sequence::capacity() const { return state_->cache.capacity(); }
void Sequence::Clear() { state_->length = 0; }

void Sequence::Truncate(int64_t length) {
  FLATQUANT_CHECK(length >= 0 && length <= state_->length);
  state_->length = length;
}

void Sequence::CopyPrefix(const Sequence& source, int64_t length) {
  FLATQUANT_CHECK(length >= 0 && length <= source.length() && length <= capacity());
  if (&source != this) state_->cache.CopyPositions(source.state_->cache, length);
  state_->length = length;
}

uint64_t Sequence::cache_bytes() const { return state_->cache.bytes(); }

}  // namespace flatquant
