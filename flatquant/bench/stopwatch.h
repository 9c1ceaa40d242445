#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/rng.h"

namespace flatquant::bench {

// Seconds of one call of body(i), i counting calls, in each of `repetitions` samples.
// A sample has as many calls as fill some 20 ms, far beyond the clock's resolution
// and the odd interrupt.
template <typename Body>
std::vector<double> SecondsPerCall(int repetitions, const Body& body) {
  using Clock = std::chrono::steady_clock;
  constexpr double kSampleSeconds = 0.02;
  int64_t call = 0;
  const auto run = [&](int64_t calls) {
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) body(call++);
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  run(2);  // warm-up: scratch memory, clocks
  const double once = run(3) / 3;
  const auto calls =
      std::clamp<int64_t>(static_cast<int64_t>(kSampleSeconds / std::max(once, 1e-9)), 1, 100000);
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) seconds.push_back(run(calls) / static_cast<double>(calls));
  return seconds;
}

// Memory that no cache holds: a benchmark that reads fewer bytes than this in turn
// would measure the last-level cache.
inline constexpr uint64_t kBeyondCaches = uint64_t{512} << 20;

// Copies of something of `bytes`, so that together they lie beyond the caches.
inline int64_t CopiesBeyondCaches(uint64_t bytes) {
  constexpr uint64_t kMost = 1024;
  return static_cast<int64_t>(
      std::clamp<uint64_t>(kBeyondCaches / std::max<uint64_t>(1, bytes), 2, kMost));
}

inline AlignedBuffer<float> RandomFloats(int64_t n, Rng& rng) {
  AlignedBuffer<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(2 * rng.Uniform() - 1);
  return values;
}

}  // namespace flatquant::bench
