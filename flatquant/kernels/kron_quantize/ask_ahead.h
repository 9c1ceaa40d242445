#pragma once

#include <algorithm>
#include <cstdint>

#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Lines of 64 bytes that nobody has asked for.
inline int64_t LinesAhead(const KronAhead& ahead) {
  int64_t floats = 0;
  for (const KronAhead::Range& range : ahead.ranges) floats += range.end - range.next;
  return (floats + 15) / 16;
}

// Gives each of `steps` an even share of `lines` lines.
inline void ShareAhead(KronAhead& ahead, int64_t lines, int64_t steps) {
  ahead.step_lines = (lines + steps - 1) / steps;
}

// The shares of a task's parts, by their time: a quarter is SwiGLU's, two thirds of what is
// left the transform's where a quantization follows, which asks for the rest.
inline void ShareWithSwiglu(KronAhead& ahead, int64_t steps) {
  ShareAhead(ahead, LinesAhead(ahead) / 4, steps);
}
inline void ShareWithTransform(KronAhead& ahead, int bits, int64_t steps) {
  ShareAhead(ahead, bits == 16 ? LinesAhead(ahead) : LinesAhead(ahead) * 2 / 3, steps);
}

// Asks memory for a step's lines, into L2.
inline void AskAhead(KronAhead& ahead) {
  int64_t lines = ahead.step_lines;
  for (KronAhead::Range& range : ahead.ranges) {
    const int64_t some = std::min<int64_t>(lines, (range.end - range.next + 15) / 16);
    for (int64_t i = 0; i < some; ++i, range.next += 16) __builtin_prefetch(range.next, 0, 2);
    range.next = std::min(range.next, range.end);
    lines -= some;
  }
}

}  // namespace
}  // namespace flatquant
