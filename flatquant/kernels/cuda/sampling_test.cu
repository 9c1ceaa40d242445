#include "flatquant/kernels/cuda/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "flatquant/kernels/cuda/testing.cuh"

namespace flatquant {
namespace {

std::vector<int32_t> Sample(const std::vector<float>& logits, int64_t rows, float temperature,
                            int top_k, float top_p, const std::vector<float>& uniform) {
  const DeviceBuffer<float> logits_device(logits), uniform_device(uniform);
  DeviceBuffer<int32_t> tokens(static_cast<size_t>(rows));
  tokens.Fill(0x55);
  CudaSample({logits_device.get(), rows, static_cast<int64_t>(logits.size()) / rows, temperature,
              top_k, top_p, uniform_device.get(), tokens.get()},
             nullptr);
  return tokens.Download();
}

// Cumulative probabilities in order of likelihood, of the kept tokens.
struct Reference {
  std::vector<int> order;
  std::vector<double> until;  // sums of weights, ending at the kept total
};

Reference Order(const float* logits, int vocab, double temperature, int top_k, double top_p) {
  Reference r;
  r.order.resize(static_cast<size_t>(vocab));
  std::iota(r.order.begin(), r.order.end(), 0);
  std::stable_sort(r.order.begin(), r.order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  const int kept = top_k > 0 ? std::min(top_k, vocab) : vocab;
  double total = 0;
  for (int i = 0; i < kept; ++i) {
    total += std::exp((logits[r.order[static_cast<size_t>(i)]] - logits[r.order[0]]) / temperature);
    r.until.push_back(total);
  }
  size_t count = 0;
  while (count < r.until.size() && r.until[count] < top_p * total) ++count;
  if (count + 1 < r.until.size()) r.until.resize(count + 1);
  return r;
}

TEST(CudaSamplingTest, GreedyTakesTheFirstOfTheLargest) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(20, [](Rng& rng) {
    const int64_t rows = cuda_testing::RandomSize(rng, 5);
    const int64_t vocab = cuda_testing::RandomSize(rng, 40000);
    std::vector<float> logits;
    // Few distinct values: ties everywhere.
    for (int64_t i = 0; i < rows * vocab; ++i)
      logits.push_back(static_cast<float>(rng.Below(50)) - 25);
    const std::vector<int32_t> tokens =
        Sample(logits, rows, 0, 0, 1, std::vector<float>(static_cast<size_t>(rows)));
    for (int64_t r = 0; r < rows; ++r) {
      const auto begin = logits.begin() + r * vocab;
      EXPECT_EQ(tokens[static_cast<size_t>(r)], std::max_element(begin, begin + vocab) - begin);
    }
  });
}

TEST(CudaSamplingTest, DrawsAsTheSortedListSays) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(30, [](Rng& rng) {
    const int64_t rows = cuda_testing::RandomSize(rng, 5);
    const int64_t vocab = cuda_testing::RandomSize(rng, 20000);
    const bool ties = rng.Below(3) == 0;
    std::vector<float> logits, uniform;
    for (int64_t i = 0; i < rows * vocab; ++i) {
      logits.push_back(ties ? static_cast<float>(rng.Below(20)) / 4
                            : static_cast<float>(3 * rng.Normal()));
    }
    for (int64_t r = 0; r < rows; ++r)
      uniform.push_back(static_cast<float>(rng.Below(1 << 24)) * 0x1p-24f);
    const float temperature = static_cast<float>(0.3 + rng.Uniform());
    const int top_k = rng.Below(2) == 0 ? 0 : 1 + static_cast<int>(rng.Below(100));
    const float top_p = rng.Below(2) == 0 ? 1.0f : static_cast<float>(0.05 + 0.9 * rng.Uniform());
    SCOPED_TRACE(::testing::Message() << rows << " x " << vocab << ", temperature " << temperature
                                      << ", top_k " << top_k << ", top_p " << top_p);
    const std::vector<int32_t> tokens = Sample(logits, rows, temperature, top_k, top_p, uniform);
    for (int64_t r = 0; r < rows; ++r) {
      const Reference reference = Order(&logits[static_cast<size_t>(r * vocab)],
                                        static_cast<int>(vocab), temperature, top_k, top_p);
      const int32_t token = tokens[static_cast<size_t>(r)];
      const auto found = std::find(reference.order.begin(), reference.order.end(), token);
      ASSERT_NE(found, reference.order.end()) << "token " << token;
      const size_t rank = static_cast<size_t>(found - reference.order.begin());
      // A cut may fall one token aside where sums agree to within rounding of exp.
      ASSERT_LE(rank, reference.until.size());
      const double total = reference.until.back();
      const double drawn = uniform[static_cast<size_t>(r)] * total;
      // exp in float has a relative error of some 2^-22, and the last cut moves the
      // total by a token's weight at most when it falls aside.
      const double last = rank < reference.until.size() ? 0 : 1;
      const double slack = 1e-5 * total + last * total;
      const double above =
          rank == 0 ? 0 : reference.until[std::min(rank, reference.until.size()) - 1];
      EXPECT_GE(drawn, above - slack);
      if (rank < reference.until.size()) {
        EXPECT_LE(drawn, reference.until[rank] + slack);
      }
    }
  });
}

TEST(CudaSamplingTest, BadLogitsGiveNoToken) {
  FLATQUANT_NEEDS_CUDA();
  const std::vector<float> logits = {0, 1,        NAN, -INFINITY, -INFINITY, -INFINITY,
                                     1, INFINITY, 0,   1,         2,         -INFINITY};
  const std::vector<int32_t> tokens = Sample(logits, 4, 0, 0, 1, {0, 0, 0, 0});
  EXPECT_EQ(tokens, (std::vector<int32_t>{-1, -1, -1, 1}));
}

}  // namespace
}  // namespace flatquant
