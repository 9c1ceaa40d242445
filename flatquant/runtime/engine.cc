#include "flatquant/runtime/engine.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/kernels/embedding/embedding.h"
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

struct Engine::State {
  std::unique_ptr<ThreadPool> pool;
  LoadedModel model;
  // Scratch of the running call; one sequence runs at a time.
  std::optional<Workspace> workspace;
  AlignedBuffer<float> logits;
  AlignedBuffer<float> logit_slice;

  Workspace& WorkspaceFor(int64_t tokens) {
    if (!workspace || workspace->tokens < tokens) {
      workspace.reset();
      workspace.emplace(model, tokens);
    }
    return *workspace;
  }
};

struct Sequence::State {
  KvCache cache;
  int64_t length = 0;
};

namespace {

void CheckTokens(const ModelConfig& config, std::span<const int32_t> tokens, int64_t length,
                 int64_t capacity) {
  if (static_cast<int64_t>(tokens.size()) > capacity - length) {
    throw Error("runtime.context_full", "sequence",
                std::to_string(length) + " tokens and " + std::to_string(tokens.size()) +
                    " new ones exceed its capacity of " + std::to_string(capacity),
                "use a shorter text or a longer context");
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < config.vocab) continue;
    throw Error("runtime.bad_token", "token " + std::to_string(i),
                "id " + std::to_string(tokens[i]) + " is outside the vocabulary of " +
                    std::to_string(config.vocab),
                "use the tokenizer that belongs to the model");
  }
}

// Runs tokens [begin, end), at most kChunkTokens, through all blocks; the result
// is the workspace's stream.
void RunChunk(const LoadedModel& model, std::span<const int32_t> tokens, KvCache& cache,
              int64_t first_position, Workspace& workspace, ThreadPool& pool) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  Embedding({model.embedding.data, model.embedding.dtype, model.config.vocab, tokens.data(), count,
             model.config.hidden, workspace.stream.data()},
            pool);
  SetRotation(model, first_position, count, workspace);
  for (size_t layer = 0; layer < model.blocks.size(); ++layer) {
    RunBlock(model, layer, first_position, count, cache, workspace, pool);
  }
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

std::span<const float> Engine::Forward(Sequence& sequence, std::span<const int32_t> tokens,
                                       Logits which) const {
  State& state = *state_;
  Sequence::State& target = *sequence.state_;
  const LoadedModel& model = state.model;
  CheckTokens(model.config, tokens, target.length, target.cache.capacity());
  if (tokens.empty()) return {};
  const size_t vocab = static_cast<size_t>(model.config.vocab);
  const size_t hidden = static_cast<size_t>(model.config.hidden);
  const size_t needed = (which == Logits::kAll ? tokens.size() : 1) * vocab;
  if (state.logits.size() < needed) state.logits = AlignedBuffer<float>(needed);
  for (size_t begin = 0; begin < tokens.size(); begin += kChunkTokens) {
    const auto chunk = tokens.subspan(begin, std::min<size_t>(kChunkTokens, tokens.size() - begin));
    const int64_t count = static_cast<int64_t>(chunk.size());
    Workspace& workspace = state.WorkspaceFor(count);
    RunChunk(model, chunk, target.cache, target.length, workspace, *state.pool);
    target.length += count;
    if (which == Logits::kAll) {
      ComputeLogits(model, workspace.stream.data(), count, state.logits.data() + begin * vocab,
                    *state.pool);
    } else if (begin + chunk.size() == tokens.size()) {
      ComputeLogits(model, workspace.stream.data() + (chunk.size() - 1) * hidden, 1,
                    state.logits.data(), *state.pool);
    }
  }
  return {state.logits.data(), needed};
}

void Engine::TokenNll(Sequence& sequence, std::span<const int32_t> tokens,
                      std::span<float> nll) const {
  State& state = *state_;
  Sequence::State& target = *sequence.state_;
  FLATQUANT_CHECK(nll.size() + 1 == tokens.size());
  CheckTokens(state.model.config, tokens, target.length, target.cache.capacity());
  for (size_t begin = 0; begin < tokens.size(); begin += kChunkTokens) {
    const auto chunk = tokens.subspan(begin, std::min<size_t>(kChunkTokens, tokens.size() - begin));
    const int64_t count = static_cast<int64_t>(chunk.size());
    Workspace& workspace = state.WorkspaceFor(count);
    RunChunk(state.model, chunk, target.cache, target.length, workspace, *state.pool);
    target.length += count;
    // The text's last token has no successor to predict.
    const size_t predicted = std::min(chunk.size(), tokens.size() - 1 - begin);
    ComputeNll(state.model, workspace.stream.data(), tokens.subspan(begin + 1, predicted),
               nll.subspan(begin, predicted), state.logit_slice, *state.pool);
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

uint64_t Sequence::cache_bytes() const { return state_->cache.bytes(); }

}  // namespace flatquant
