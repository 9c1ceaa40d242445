#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace flatquant::tokenizer {

// One rule of byte-pair encoding: the tokens left and right, side by side,
// become `merged`. Rules of lower rank are applied first.
struct Merge {
  int32_t left;
  int32_t right;
  uint32_t rank;
  int32_t merged;
};

// All merge rules of a tokenizer, and the algorithm that applies them.
class MergeTable {
 public:
  MergeTable() = default;
  // Where two rules name the same pair, the later one counts.
  explicit MergeTable(std::span<const Merge> merges);

  // Merges symbols in place until no rule applies: always the rule of lowest
  // rank, leftmost first. ids: token ids, any length below 2^32.
  // O(n log n) for long inputs, O(n^2) but faster below kShort symbols.
  void Apply(std::vector<int32_t>* ids) const;

  size_t size() const { return size_; }

 private:
  struct Entry {
    uint64_t pair;
    uint32_t rank;
    int32_t merged;
  };

  static constexpr uint32_t kNoRank = UINT32_MAX;
  static constexpr size_t kShort = 48;

  // The rule for (left, right), or nullptr.
  const Entry* Find(int32_t left, int32_t right) const;
  uint32_t Rank(int32_t left, int32_t right) const;
  void ApplyShort(std::vector<int32_t>* ids) const;
  void ApplyLong(std::vector<int32_t>* ids) const;

  std::vector<Entry> slots_;  // open addressing, a power of two, at most half full
  int shift_ = 63;
  size_t size_ = 0;
};

}  // namespace flatquant::tokenizer
