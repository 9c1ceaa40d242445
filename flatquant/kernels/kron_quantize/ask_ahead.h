#pragma once

#include <algorithm>
#include <cstdint>

#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Asks memory for the next `lines` lines of 64 bytes, into L2.
inline void AskAhead(KronAhead& ahead, int64_t lines) {
  for (KronAhead::Range& range : ahead.ranges) {
    const int64_t some = std::min<int64_t>(lines, (range.end - range.next + 15) / 16);
    for (int64_t i = 0; i < some; ++i, range.next += 16) __builtin_prefetch(range.next, 0, 2);
    range.next = std::min(range.next, range.end);
    lines -= some;
  }
}

// What a part of a transform asks for.
struct AheadShare {
  KronAhead* memory;
  int64_t lines;

  // An even share for each of `parts`.
  AheadShare(KronAhead* ahead, int64_t parts) : memory(ahead) {
    int64_t floats = 0;
    for (const KronAhead::Range& range : ahead->ranges) floats += range.end - range.next;
    lines = (floats / 16 + parts - 1) / parts;
  }
  void Ask() const { AskAhead(*memory, lines); }
};

}  // namespace
}  // namespace flatquant
