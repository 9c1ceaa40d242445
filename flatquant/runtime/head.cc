#include "flatquant/runtime/head.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/vector_exp.h"

namespace flatquant {
namespace {

// Logits of a slice of the vocabulary: 8 MB for 512 tokens.
constexpr int64_t kVocabSlice = 4096;

void FinalNorm(const LoadedModel& model, float* stream, int64_t tokens, ThreadPool& pool) {
  RmsNorm(
      {stream, model.final_norm.data(), model.config.rms_eps, tokens, model.config.hidden, stream},
      pool);
}

// The running log-sum-exp of one token.
struct LogSumExp {
  float top = std::numeric_limits<float>::lowest();
  double sum = 0;  // of exp(logit - top)

  void Add(const float* logits, int64_t n) {
    constexpr int64_t kLanes = 16;  // partial results, so that the compiler can vectorise
    float lane[kLanes];
    std::fill(lane, lane + kLanes, top);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) lane[j] = std::max(lane[j], logits[i + j]);
    }
    for (; i < n; ++i) lane[0] = std::max(lane[0], logits[i]);
    const float new_top = *std::max_element(lane, lane + kLanes);
    std::fill(lane, lane + kLanes, 0.0f);
    for (i = 0; i + kLanes <= n; i += kLanes) {
      for (int64_t j = 0; j < kLanes; ++j) lane[j] += VectorExp(logits[i + j] - new_top);
    }
    for (; i < n; ++i) lane[0] += VectorExp(logits[i] - new_top);
    sum *= std::exp(static_cast<double>(top) - new_top);
    for (float part : lane) sum += part;
    top = new_top;
  }
};

}  // namespace

void ComputeLogits(const LoadedModel& model, float* stream, int64_t tokens, float* logits,
                   ThreadPool& pool) {
  FinalNorm(model, stream, tokens, pool);
  const int64_t vocab = model.config.vocab;
  GemmFloat({stream, tokens, &model.lm_head, 0, vocab, logits, vocab}, pool);
}

void ComputeNll(const LoadedModel& model, float* stream, std::span<const int32_t> targets,
                std::span<float> nll, AlignedBuffer<float>& scratch, ThreadPool& pool) {
  FLATQUANT_CHECK(targets.size() == nll.size());
  if (targets.empty()) return;
  const int64_t tokens = static_cast<int64_t>(targets.size());
  const int64_t vocab = model.config.vocab;
  const int64_t width = std::min(kVocabSlice, vocab);
  const size_t needed = targets.size() * static_cast<size_t>(width);
  if (scratch.size() < needed) scratch = AlignedBuffer<float>(needed);
  FinalNorm(model, stream, tokens, pool);
  std::vector<LogSumExp> totals(targets.size());
  for (int64_t begin = 0; begin < vocab; begin += kVocabSlice) {
    const int64_t end = std::min(vocab, begin + kVocabSlice);
    GemmFloat({stream, tokens, &model.lm_head, begin, end, scratch.data(), width}, pool);
    pool.ParallelFor(targets.size(), 4, [&](size_t first, size_t last) {
      for (size_t t = first; t < last; ++t) {
        const float* logits = scratch.data() + t * static_cast<size_t>(width);
        totals[t].Add(logits, end - begin);
        if (targets[t] >= begin && targets[t] < end) nll[t] = logits[targets[t] - begin];
      }
    });
  }
  for (size_t t = 0; t < targets.size(); ++t) {
    nll[t] = static_cast<float>(std::log(totals[t].sum) + totals[t].top - nll[t]);
  }
}

}  // namespace flatquant
