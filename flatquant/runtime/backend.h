#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "flatquant/model/config.h"
#include "flatquant/runtime/profile.h"
#include "flatquant/runtime/sampler.h"
#include "flatquant/runtime/token_scores.h"

namespace flatquant {

// The K and V of one sequence in a backend's memory, packed when the model says so.
class SequenceCache {
 public:
  virtual ~SequenceCache() = default;

  virtual int64_t capacity() const = 0;  // positions
  virtual uint64_t bytes() const = 0;
  // Takes over the first `count` positions of a cache of the same backend, count being
  // within both capacities.
  virtual void CopyPositions(const SequenceCache& source, int64_t count) = 0;
};

// One sequence's part of a forward pass: rows [row_begin, row_begin + tokens) of
// the pass stand at positions first_position and up of the sequence in `cache`.
// The segments of a pass follow each other, cover its rows and have different
// caches. Linears see only rows; the cache and attention see segments.
struct Segment {
  SequenceCache* cache = nullptr;
  int64_t first_position = 0;
  int64_t row_begin = 0;
  int64_t tokens = 0;
};

struct WeightBytes {
  uint64_t all = 0;
  // What every pass reads, whatever its tokens: all but an embedding table that is not
  // the output projection too.
  uint64_t per_pass = 0;
  uint64_t blocks = 0;  // of these
};

// A network loaded where it runs. The engine decides what runs together; a backend
// runs it: one pass at a time, in memory that only grows, so that passes of one size
// allocate nothing after the first.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual const ModelConfig& config() const = 0;
  virtual WeightBytes weight_bytes() const = 0;
  // Bytes of memory apart from the machine's own that this backend and its caches hold.
  virtual uint64_t device_memory() const { return 0; }
  // Whether all blocks' linears multiply integers.
  virtual bool multiplies_integers() const = 0;
  // Rows of a pass at most: enough to amortise reading the weights, few enough for
  // memory to stay bounded.
  virtual int64_t max_rows() const = 0;

  virtual std::unique_ptr<SequenceCache> MakeCache(int64_t capacity) = 0;

  // Runs the rows of ids, each in the vocabulary, through embedding and blocks. The
  // caches then hold their K and V, and the backend the residual stream, until the
  // next pass. profile: somebody else's, or nullptr.
  virtual void Run(std::span<const Segment> segments, std::span<const int32_t> ids,
                   Profile* profile) = 0;

  // Of the pass before, once: logits [rows.size(), vocab] of some of its rows, in
  // rising order.
  virtual void Logits(std::span<const int64_t> rows, float* logits) = 0;
  // Or: scores[i] of targets[i] by the logits of rows[i]. The logits need not all be in
  // memory at once.
  virtual void Scores(std::span<const int64_t> rows, std::span<const int32_t> targets,
                      std::span<TokenScore> scores) = 0;
  // Or: tokens[i] that samplers[i] draws from the logits of rows[i]. Errors: sampler's.
  virtual void Sample(std::span<const int64_t> rows, std::span<Sampler* const> samplers,
                      std::span<int32_t> tokens) = 0;
};

}  // namespace flatquant
