#include "flatquant/tokenizer/merges.h"

#include <algorithm>
#include <bit>

#include "flatquant/base/error.h"

namespace flatquant::tokenizer {
namespace {

constexpr uint64_t kEmpty = UINT64_MAX;

uint64_t Pair(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Fibonacci hashing: the golden ratio's bits spread a pair over the top bits.
uint64_t Hash(uint64_t pair) { return (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u; }

}  // namespace

MergeTable::MergeTable(std::span<const Merge> merges) {
  if (merges.empty()) return;
  const size_t capacity = std::bit_ceil(std::max<size_t>(merges.size() * 2, 16));
  shift_ = 64 - std::countr_zero(capacity);
  slots_.assign(capacity, Entry{kEmpty, kNoRank, 0});
  for (const Merge& merge : merges) {
    const uint64_t pair = Pair(merge.left, merge.right);
    size_t at = Hash(pair) >> shift_;
    while (slots_[at].pair != kEmpty && slots_[at].pair != pair) at = (at + 1) & (capacity - 1);
    if (slots_[at].pair == kEmpty) ++size_;
    slots_[at] = {pair, merge.rank, merge.merged};
  }
}

const MergeTable::Entry* MergeTable::Find(int32_t left, int32_t right) const {
  const uint64_t pair = Pair(left, right);
  for (size_t at = Hash(pair) >> shift_;; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
    if (slots_[at].pair == kEmpty) return nullptr;
  }
}

uint32_t MergeTable::Rank(int32_t left, int32_t right) const {
  const Entry* entry = Find(left, right);
  return entry == nullptr ? kNoRank : entry->rank;
}

void MergeTable::Apply(std::vector<int32_t>* ids) const {
  if (ids->size() < 2 || size_ == 0) return;
  if (ids->size() <= kShort) {
    ApplyShort(ids);
  } else {
    ApplyLong(ids);
  }
}

void MergeTable::ApplyShort(std::vector<int32_t>* ids) const {
  size_t n = ids->size();
  int32_t* id = ids->data();
  const Entry* rule[kShort];  // of the pair (i, i + 1)
  for (size_t i = 0; i + 1 < n; ++i) rule[i] = Find(id[i], id[i + 1]);
  for (;;) {
    size_t best = n;
    uint32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < n; ++i) {
      if (rule[i] != nullptr && rule[i]->rank < best_rank) {
        best = i;
        best_rank = rule[i]->rank;
      }
    }
    if (best == n) break;
    id[best] = rule[best]->merged;
    std::copy(id + best + 2, id + n, id + best + 1);
    if (best + 2 < n) std::copy(rule + best + 2, rule + n - 1, rule + best + 1);
    --n;
    if (best > 0) rule[best - 1] = Find(id[best - 1], id[best]);
    if (best + 1 < n) rule[best] = Find(id[best], id[best + 1]);
  }
  ids->resize(n);
}

void MergeTable::ApplyLong(std::vector<int32_t>* ids) const {
  const size_t n = ids->size();
  FLATQUANT_CHECK(n < UINT32_MAX);
  // A doubly linked list over the symbols; merged-away symbols have id -1.
  struct Link {
    uint32_t previous;
    uint32_t next;
  };
  constexpr uint32_t kEnd = UINT32_MAX;
  std::vector<int32_t>& id = *ids;
  std::vector<Link> link(n);
  // Candidates as rank << 32 | position, so that the smallest is the next rule
  // to apply. Entries go stale when a neighbour merges and are then skipped.
  std::vector<uint64_t> heap;
  heap.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    link[i] = {i == 0 ? kEnd : static_cast<uint32_t>(i - 1),
               i + 1 == n ? kEnd : static_cast<uint32_t>(i + 1)};
    if (i + 1 < n) {
      const uint32_t rank = Rank(id[i], id[i + 1]);
      if (rank != kNoRank) heap.push_back(static_cast<uint64_t>(rank) << 32 | i);
    }
  }
  const auto later = std::greater<uint64_t>();
  std::make_heap(heap.begin(), heap.end(), later);
  const auto push = [&](uint32_t at) {
    const uint32_t rank = Rank(id[at], id[link[at].next]);
    if (rank == kNoRank) return;
    heap.push_back(static_cast<uint64_t>(rank) << 32 | at);
    std::push_heap(heap.begin(), heap.end(), later);
  };
  while (!heap.empty()) {
    const uint64_t top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    const auto at = static_cast<uint32_t>(top);
    const uint32_t next = link[at].next;
    if (id[at] < 0 || next == kEnd) continue;
    const Entry* rule = Find(id[at], id[next]);
    if (rule == nullptr || rule->rank != top >> 32) continue;
    id[at] = rule->merged;
    id[next] = -1;
    link[at].next = link[next].next;
    if (link[at].next != kEnd) {
      link[link[at].next].previous = at;
      push(at);
    }
    if (link[at].previous != kEnd) push(link[at].previous);
  }
  std::erase(id, -1);
}

}  // namespace flatquant::tokenizer
