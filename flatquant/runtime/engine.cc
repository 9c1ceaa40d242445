#include "flatquant/runtime/engine.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/error.h"
#include "flatquant/runtime/backend.h"
#include "flatquant/runtime/cpu_backend.h"
#include "flatquant/runtime/cuda/cuda_backend.h"
#include "flatquant/runtime/plain_model.h"

namespace flatquant {

struct Sequence::State {
  std::unique_ptr<SequenceCache> cache;
  int64_t length = 0;
};

struct Engine::State {
  std::string device;
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Backend> backend;
  Profile* profile = nullptr;
  // Scratch of the running call; one call runs at a time. It only grows, so that
  // calls of one size allocate nothing after the first.
  AlignedBuffer<float> logits;
  // The pass that is being put together: its segments, the ids of its rows, and the
  // rows whose logits are wanted.
  std::vector<Segment> segments;
  std::vector<int32_t> ids;
  std::vector<int64_t> rows;
  // What Score wants of those rows, and where it goes, piece by piece.
  std::vector<int32_t> targets;
  std::vector<TokenScore> scores;
  std::vector<std::span<TokenScore>> destinations;

  void BeginPass() {
    segments.clear();
    ids.clear();
    rows.clear();
    targets.clear();
    destinations.clear();
  }

  int64_t pass_rows() const { return static_cast<int64_t>(ids.size()); }
  bool PassIsFull() const { return pass_rows() >= backend->max_rows(); }

  // Appends as many of the tokens to the sequence as the pass has room for, and
  // returns their number.
  size_t AddToPass(Sequence::State& sequence, std::span<const int32_t> tokens) {
    const int64_t count =
        std::min(backend->max_rows() - pass_rows(), static_cast<int64_t>(tokens.size()));
    segments.push_back({sequence.cache.get(), sequence.length, pass_rows(), count});
    ids.insert(ids.end(), tokens.begin(), tokens.begin() + count);
    sequence.length += count;
    return static_cast<size_t>(count);
  }

  void RunPass() { backend->Run(segments, ids, profile); }

  // Runs the pass and scores the targets, row by row.
  void ScorePass() {
    RunPass();
    scores.resize(targets.size());
    if (!rows.empty()) backend->Scores(rows, targets, scores);
    auto next = scores.begin();
    for (const std::span<TokenScore> destination : destinations) {
      std::copy_n(next, destination.size(), destination.begin());
      next += static_cast<std::ptrdiff_t>(destination.size());
    }
  }

  float* LogitsFor(size_t tokens) {
    const size_t needed = tokens * static_cast<size_t>(backend->config().vocab);
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
  const bool on_cpu = options.device == "cpu";
  if (options.precision == (on_cpu ? Precision::kF16 : Precision::kF32)) {
    throw Error("runtime.precision", "--device " + options.device,
                on_cpu ? "does not compute in f16" : "does not compute in f32",
                on_cpu ? "use --precision f32 or bf16" : "use --precision f16 or bf16");
  }
  const bool is_bf16 = options.precision == Precision::kBF16;
  auto state = std::make_unique<State>();
  state->device = options.device;
  state->pool = std::make_unique<ThreadPool>(options.threads);
  if (on_cpu) {
    const GemmFloatMath math = is_bf16 ? GemmFloatMath::kBF16 : GemmFloatMath::kF32;
    state->backend = MakeCpuBackend(std::move(model), math, *state->pool);
  } else {
    state->backend = MakeCudaBackend(std::move(model), options.device,
                                     is_bf16 ? DType::kBF16 : DType::kF16, *state->pool);
  }
  return std::unique_ptr<Engine>(new Engine(std::move(state)));
}

std::unique_ptr<Engine> Engine::FromSource(const SourceModel& model, const EngineOptions& options) {
  return FromPacked(PlainModel(model), options);
}

const ModelConfig& Engine::config() const { return state_->backend->config(); }
ThreadPool& Engine::pool() const { return *state_->pool; }
const std::string& Engine::device() const { return state_->device; }
uint64_t Engine::device_memory() const { return state_->backend->device_memory(); }
uint64_t Engine::weight_bytes() const { return state_->backend->weight_bytes().all; }
uint64_t Engine::bytes_per_pass() const { return state_->backend->weight_bytes().per_pass; }
uint64_t Engine::block_bytes() const { return state_->backend->weight_bytes().blocks; }
bool Engine::multiplies_integers() const { return state_->backend->multiplies_integers(); }
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
  CheckTokens(config(), tokens, target.length, target.cache->capacity());
  const size_t vocab = static_cast<size_t>(config().vocab);
  float* logits = state.LogitsFor(tokens.size());
  for (size_t begin = 0; begin < tokens.size();) {
    state.BeginPass();
    const size_t count = state.AddToPass(target, tokens.subspan(begin));
    state.rows.resize(count);
    std::iota(state.rows.begin(), state.rows.end(), int64_t{0});
    state.RunPass();
    state.backend->Logits(state.rows, logits + begin * vocab);
    begin += count;
  }
  return {logits, tokens.size() * vocab};
}

template <typename Use>
void Engine::RunBatch(std::span<const BatchItem> batch, const Use& use) const {
  State& state = *state_;
  for (size_t i = 0; i < batch.size(); ++i) {
    FLATQUANT_CHECK(!batch[i].tokens.empty());
    for (size_t j = 0; j < i; ++j) FLATQUANT_CHECK(batch[j].sequence != batch[i].sequence);
    const Sequence::State& target = *batch[i].sequence->state_;
    CheckTokens(config(), batch[i].tokens, target.length, target.cache->capacity());
  }
  size_t item = 0;  // the first that has tokens left
  size_t used = 0;  // of its tokens
  for (size_t done = 0; item < batch.size(); done = item) {
    state.BeginPass();
    while (item < batch.size() && !state.PassIsFull()) {
      used += state.AddToPass(*batch[item].sequence->state_, batch[item].tokens.subspan(used));
      if (used < batch[item].tokens.size()) break;
      state.rows.push_back(state.pass_rows() - 1);
      ++item;
      used = 0;
    }
    state.RunPass();
    if (item > done) use(done, std::span<const int64_t>(state.rows));
  }
}

std::span<const float> Engine::ForwardBatch(std::span<const BatchItem> batch) const {
  const size_t vocab = static_cast<size_t>(config().vocab);
  float* logits = state_->LogitsFor(batch.size());
  RunBatch(batch, [&](size_t first, std::span<const int64_t> rows) {
    state_->backend->Logits(rows, logits + first * vocab);
  });
  return {logits, batch.size() * vocab};
}

void Engine::SampleBatch(std::span<const BatchItem> batch, std::span<Sampler* const> samplers,
                         std::span<int32_t> tokens) const {
  FLATQUANT_CHECK(samplers.size() == batch.size() && tokens.size() == batch.size());
  RunBatch(batch, [&](size_t first, std::span<const int64_t> rows) {
    state_->backend->Sample(rows, samplers.subspan(first, rows.size()),
                            tokens.subspan(first, rows.size()));
  });
}

void Engine::TokenNll(Sequence& sequence, std::span<const int32_t> tokens,
                      std::span<float> nll) const {
  FLATQUANT_CHECK(nll.size() + 1 == tokens.size());
  std::vector<TokenScore> scores(nll.size());
  // The text's last token has no successor to predict, but is appended all the same.
  const std::span<const int32_t> targets = tokens.subspan(1);
  State& state = *state_;
  Sequence::State& target = *sequence.state_;
  CheckTokens(config(), tokens, target.length, target.cache->capacity());
  for (size_t begin = 0; begin < tokens.size();) {
    state.BeginPass();
    const size_t count = state.AddToPass(target, tokens.subspan(begin));
    const size_t predicted = std::min(count, targets.size() - begin);
    state.rows.resize(predicted);
    std::iota(state.rows.begin(), state.rows.end(), int64_t{0});
    const std::span<const int32_t> wanted = targets.subspan(begin, predicted);
    state.targets.assign(wanted.begin(), wanted.end());
    state.destinations.push_back(std::span(scores).subspan(begin, predicted));
    state.ScorePass();
    begin += count;
  }
  for (size_t i = 0; i < nll.size(); ++i) nll[i] = scores[i].nll;
}

void Engine::Score(std::span<const ScoreItem> batch) const {
  State& state = *state_;
  for (size_t i = 0; i < batch.size(); ++i) {
    const ScoreItem& item = batch[i];
    FLATQUANT_CHECK(!item.tokens.empty() && item.targets.size() <= item.tokens.size());
    FLATQUANT_CHECK(item.scores.size() == item.targets.size());
    for (size_t j = 0; j < i; ++j) FLATQUANT_CHECK(batch[j].sequence != item.sequence);
    const Sequence::State& target = *item.sequence->state_;
    CheckTokens(config(), item.tokens, target.length, target.cache->capacity());
    CheckIds(config(), item.targets);
  }
  size_t item = 0;  // the first that has tokens left
  size_t used = 0;  // of its tokens
  while (item < batch.size()) {
    state.BeginPass();
    while (item < batch.size() && !state.PassIsFull()) {
      const ScoreItem& current = batch[item];
      const size_t first_row = state.ids.size();
      const size_t count = state.AddToPass(*current.sequence->state_, current.tokens.subspan(used));
      const size_t unscored = current.tokens.size() - current.targets.size();
      const size_t begin = std::max(used, unscored);
      for (size_t at = begin; at < used + count; ++at) {
        state.rows.push_back(static_cast<int64_t>(first_row + at - used));
        state.targets.push_back(current.targets[at - unscored]);
      }
      if (begin < used + count) {
        state.destinations.push_back(
            current.scores.subspan(begin - unscored, used + count - begin));
      }
      used += count;
      if (used < current.tokens.size()) break;
      ++item;
      used = 0;
    }
    state.ScorePass();
  }
}

Sequence::Sequence(const Engine& engine, int64_t capacity) {
  if (capacity <= 0) {
    throw Error("runtime.capacity", "sequence",
                "a capacity of " + std::to_string(capacity) + " tokens holds nothing",
                "ask for at least one");
  }
  state_ = std::make_unique<State>(State{engine.state_->backend->MakeCache(capacity)});
}
Sequence::~Sequence() = default;

int64_t Sequence::length() const { return state_->length; }
int64_t Sequence::capacity() const { return state_->cache->capacity(); }
void Sequence::Clear() { state_->length = 0; }

void Sequence::Truncate(int64_t length) {
  FLATQUANT_CHECK(length >= 0 && length <= state_->length);
  state_->length = length;
}

void Sequence::CopyPrefix(const Sequence& source, int64_t length) {
  FLATQUANT_CHECK(length >= 0 && length <= source.length() && length <= capacity());
  if (&source != this) state_->cache->CopyPositions(*source.state_->cache, length);
  state_->length = length;
}

uint64_t Sequence::cache_bytes() const { return state_->cache->bytes(); }

}  // namespace flatquant
