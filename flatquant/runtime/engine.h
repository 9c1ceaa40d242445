#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flatquant/base/thread_pool.h"
#include "flatquant/model/config.h"
#include "flatquant/model/source_model.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/runtime/profile.h"
#include "flatquant/runtime/sampler.h"
#include "flatquant/runtime/token_scores.h"

namespace flatquant {

// The type of what is not quantized. On the CPU that of full-precision linears' operands:
// kF32 (kDefault) or kBF16. On a GPU that of all activations too: kF16 (kDefault) or
// kBF16, whose range is wider and whose steps are eight times as coarse. Sums are float.
enum class Precision { kDefault, kF32, kF16, kBF16 };

struct EngineOptions {
  int threads = 0;  // 0: every usable core
  Precision precision = Precision::kDefault;
  std::string device = "cpu";  // or "cuda", "cuda:1"
};

class Sequence;

// Tokens, at least one, that a call of Engine::ForwardBatch appends to a sequence.
struct BatchItem {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens;
};

// Tokens, at least one, that a call of Engine::Score appends to a sequence, and the
// tokens that follow its last positions: targets[i] is scored at position
// tokens.size() - targets.size() + i, so there are at most as many as tokens.
struct ScoreItem {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens;
  std::span<const int32_t> targets;
  std::span<TokenScore> scores;  // as many as targets
};

// A loaded network that can run: a packed model or a plain one, through one
// forward pass. Immutable; any number of sequences may use it, one at a time.
class Engine {
 public:
  // Opens a packed directory or a plain Hugging Face one. Errors: runtime.precision where
  // the device does not compute so, MakeCudaBackend's.
  static std::unique_ptr<Engine> Open(const std::filesystem::path& directory,
                                      const EngineOptions& options);
  static std::unique_ptr<Engine> FromPacked(PackedModel model, const EngineOptions& options);
  static std::unique_ptr<Engine> FromSource(const SourceModel& model, const EngineOptions& options);

  ~Engine();
  const ModelConfig& config() const;
  ThreadPool& pool() const;

  const std::string& device() const;  // EngineOptions'
  // Bytes of a GPU's memory that the engine and its sequences hold; 0 on the CPU.
  uint64_t device_memory() const;

  // Bytes of weights in memory.
  uint64_t weight_bytes() const;
  // Of these, what every pass reads, whatever its tokens.
  uint64_t bytes_per_pass() const;
  uint64_t block_bytes() const;  // all blocks', of these

  // Whether the blocks' linears multiply integers (weights and activations of at
  // most 8 bits), all of them.
  bool multiplies_integers() const;

  // From now on the time that passes take is added to *profile, which the caller
  // keeps; nullptr, as at the start, measures nothing.
  void set_profile(Profile* profile) const;

  // Which positions' logits Forward returns.
  enum class Logits { kAll, kLast };

  // Appends tokens to the sequence and returns logits as float32, [n, vocab] for
  // kAll or [1, vocab] for kLast, valid until the next call on this engine.
  // Errors: runtime.context_full when the sequence's capacity is exceeded,
  // runtime.bad_token for an id outside the vocabulary.
  std::span<const float> Forward(Sequence& sequence, std::span<const int32_t> tokens,
                                 Logits which) const;

  // Appends each item's tokens to its sequence, every linear reading its weights
  // once for all of them, and returns the logits of each item's last token, float32
  // [items, vocab], valid until the next call on this engine. A decode step of many
  // sequences has one token per item; a prompt may ride along. The sequences differ.
  // Errors: as Forward, before any sequence has changed.
  std::span<const float> ForwardBatch(std::span<const BatchItem> batch) const;

  // As ForwardBatch, but draws each item's next token where the network runs:
  // tokens[i] by samplers[i]. Errors: as Forward, Sampler::Next's.
  void SampleBatch(std::span<const BatchItem> batch, std::span<Sampler* const> samplers,
                   std::span<int32_t> tokens) const;

  // Appends tokens (at least one) to the sequence as Forward does and writes, for
  // each token but the first, its negative log-likelihood given all before it, in
  // nats: nll[i] = -log p(tokens[i + 1]), so nll.size() == tokens.size() - 1. The
  // logits are never all in memory at once, however long the text and large the
  // vocabulary. Errors: as Forward.
  void TokenNll(Sequence& sequence, std::span<const int32_t> tokens, std::span<float> nll) const;

  // Appends each item's tokens to its sequence as ForwardBatch does and scores its
  // targets. Logits are computed of scored positions only. The sequences differ.
  // Errors: as Forward, before any sequence has changed.
  void Score(std::span<const ScoreItem> batch) const;

 private:
  friend class Sequence;
  struct State;
  // Runs the batch; use(first, rows) is called for the items [first, first + rows.size())
  // when their last tokens' rows of a pass are ready.
  template <typename Use>
  void RunBatch(std::span<const BatchItem> batch, const Use& use) const;
  explicit Engine(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The KV cache of one sequence: packed when the model says so.
class Sequence {
 public:
  // capacity: tokens that fit.
  Sequence(const Engine& engine, int64_t capacity);
  ~Sequence();
  int64_t length() const;
  int64_t capacity() const;
  void Clear();  // back to length 0, memory kept
  void Truncate(int64_t length);
  // Becomes the first `length` positions of another sequence of the same engine,
  // which has at least as many; they must fit.
  void CopyPrefix(const Sequence& source, int64_t length);
  uint64_t cache_bytes() const;

 private:
  friend class Engine;
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flatquant
