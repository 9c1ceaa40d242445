#include <gtest/gtest.h>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/rope/rope.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

TEST(RopeTest, AgreesWithTheFormula) {
  ThreadPool pool(2);
  ForEachSeed(60, [&](Rng& rng) {
    const int64_t tokens = RandomSize(rng, 50), heads = RandomSize(rng, 6);
    const int64_t half = RandomSize(rng, 40);
    AlignedBuffer<float> x = RandomFloats(rng, tokens * heads * 2 * half);
    AlignedBuffer<float> before(x.size());
    std::copy(x.begin(), x.end(), before.begin());
    const AlignedBuffer<float> cos = RandomFloats(rng, tokens * half);
    const AlignedBuffer<float> sin = RandomFloats(rng, tokens * half);
    Rope({x.data(), tokens, heads, 2 * half, cos.data(), sin.data()}, pool);
    Worst worst;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const size_t head = static_cast<size_t>((t * heads + h) * 2 * half);
        for (int64_t i = 0; i < half; ++i) {
          const size_t low = head + static_cast<size_t>(i), high = low + static_cast<size_t>(half);
          const double a = before[low], b = before[high];
          const double c = cos[static_cast<size_t>(t * half + i)];
          const double s = sin[static_cast<size_t>(t * half + i)];
          worst.Compare(x[low], a * c - b * s, 2 * kEpsilon * (std::abs(a * c) + std::abs(b * s)),
                        t, i);
          worst.Compare(x[high], b * c + a * s, 2 * kEpsilon * (std::abs(b * c) + std::abs(a * s)),
                        t, half + i);
        }
      }
    }
    worst.Check();
  });
}

}  // namespace
}  // namespace flatquant
