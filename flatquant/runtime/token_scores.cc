#include "flatquant/runtime/token_scores.h"

#include <algorithm>
#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/kernels/vector_exp.h"
#include "flatquant/runtime/head.h"

namespace flatquant {
namespace {

// Logits in memory at once, 16 MB: rows enough for the product to read its weights
// seldom, whatever the vocabulary.
constexpr int64_t kLogits = int64_t{1} << 22;
constexpr int64_t kFewestRows = 16;

}  // namespace

LogitSummary SummarizeLogits(std::span<const float> logits) {
  constexpr size_t kLanes = 16;  // partial results, so that the compiler can vectorise
  FLATQUANT_CHECK(!logits.empty());
  float lane[kLanes];
  std::fill(lane, lane + kLanes, logits[0]);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lane[j] = std::max(lane[j], logits[i + j]);
  }
  for (; i < logits.size(); ++i) lane[0] = std::max(lane[0], logits[i]);
  const float top = *std::max_element(lane, lane + kLanes);
  std::fill(lane, lane + kLanes, 0.0f);
  for (i = 0; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t j = 0; j < kLanes; ++j) lane[j] += VectorExp(logits[i + j] - top);
  }
  for (; i < logits.size(); ++i) lane[0] += VectorExp(logits[i] - top);
  double sum = 0;
  for (float part : lane) sum += part;
  const auto first = std::find(logits.begin(), logits.end(), top);
  // NaN equals nothing: the log-sum then tells.
  const auto index = first == logits.end() ? 0 : first - logits.begin();
  return {static_cast<int32_t>(index), top + std::log(sum)};
}

void ComputeTokenScores(const LoadedModel& model, const float* stream,
                        std::span<const int32_t> targets, std::span<TokenScore> scores,
                        AlignedBuffer<float>& scratch, SiteBuffers& buffers, ThreadPool& pool) {
  FLATQUANT_CHECK(targets.size() == scores.size());
  const size_t vocab = static_cast<size_t>(model.config.vocab);
  const size_t hidden = static_cast<size_t>(model.config.hidden);
  const size_t rows = std::min(
      targets.size(), static_cast<size_t>(std::max(kFewestRows, kLogits / model.config.vocab)));
  if (scratch.size() < rows * vocab) scratch = AlignedBuffer<float>(rows * vocab);
  for (size_t begin = 0; begin < targets.size(); begin += rows) {
    const size_t count = std::min(rows, targets.size() - begin);
    ComputeLogits(model, stream + begin * hidden, static_cast<int64_t>(count), scratch.data(),
                  buffers, pool);
    pool.ParallelFor(count, 4, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t) {
        const std::span<const float> logits(scratch.data() + t * vocab, vocab);
        const int32_t target = targets[begin + t];
        const LogitSummary summary = SummarizeLogits(logits);
        scores[begin + t] = {
            static_cast<float>(summary.log_sum - logits[static_cast<size_t>(target)]),
            summary.top == target};
      }
    });
  }
}

}  // namespace flatquant
