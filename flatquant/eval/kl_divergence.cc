#include "flatquant/eval/kl_divergence.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/runtime/token_scores.h"

namespace flatquant {
namespace {

// sum over i of exp(base[i] - base_log_sum) * (base[i] - logits[i] - shift), summed
// as differences, since both rows may have any constant added.
double WeightedDifference(std::span<const float> base, std::span<const float> logits,
                          float base_log_sum, float shift) {
  constexpr size_t kBlock = 256;  // summed in float, then in double: few roundings each
  double total = 0;
  for (size_t begin = 0; begin < base.size(); begin += kBlock) {
    const size_t end = std::min(begin + kBlock, base.size());
    float sum = 0;
    for (size_t i = begin; i < end; ++i) {
      sum += std::exp(base[i] - base_log_sum) * (base[i] - logits[i] - shift);
    }
    total += sum;
  }
  return total;
}

std::vector<float> Sorted(std::vector<float> values) {
  std::sort(values.begin(), values.end());
  return values;
}

constexpr double kPercentiles[] = {0.001, 0.01, 0.05, 0.10, 0.25, 0.75, 0.90, 0.95, 0.99, 0.999};

Distribution Describe(const std::vector<float>& values) {
  Distribution result;
  result.mean = MeanOf(values);
  const std::vector<float> sorted = Sorted(values);
  result.minimum = sorted.front();
  result.maximum = sorted.back();
  result.median = Percentile(sorted, 0.5);
  for (double fraction : kPercentiles) {
    result.percentiles.push_back(Percentile(sorted, fraction));
  }
  return result;
}

}  // namespace

TokenDivergence CompareLogits(std::span<const float> base, std::span<const float> logits,
                              int32_t target) {
  FLATQUANT_CHECK(base.size() == logits.size());
  const LogitSummary base_summary = SummarizeLogits(base);
  const LogitSummary summary = SummarizeLogits(logits);
  const size_t at = static_cast<size_t>(target);
  TokenDivergence result;
  // sum p (log p - log q) with log p = base - base_sum, log q = logits - sum. The
  // sums' difference enters as a float in the loop and by its rest afterwards.
  const double sums = base_summary.log_sum - summary.log_sum;
  const float shift = static_cast<float>(sums);
  result.kld = static_cast<float>(
      WeightedDifference(base, logits, static_cast<float>(base_summary.log_sum), shift) -
      (sums - shift));
  result.nll = static_cast<float>(summary.log_sum - logits[at]);
  result.base_nll = static_cast<float>(base_summary.log_sum - base[at]);
  result.same_top = base_summary.top == summary.top;
  return result;
}

KlStatistics Summarize(std::string name, std::span<const TokenDivergence> tokens) {
  FLATQUANT_CHECK(!tokens.empty());
  std::vector<float> nll, base_nll, kld, change, square, same;
  for (const TokenDivergence& token : tokens) {
    nll.push_back(token.nll);
    base_nll.push_back(token.base_nll);
    kld.push_back(token.kld);
    const double difference =
        std::exp(-static_cast<double>(token.nll)) - std::exp(-static_cast<double>(token.base_nll));
    change.push_back(static_cast<float>(difference));
    square.push_back(static_cast<float>(difference * difference));
    same.push_back(token.same_top ? 1.0f : 0.0f);
  }
  KlStatistics result;
  result.name = std::move(name);
  result.tokens = static_cast<int64_t>(tokens.size());
  const Estimate log_ppl = MeanOf(nll), log_base = MeanOf(base_nll);
  const double covariance = CovarianceOfMeans(nll, base_nll);
  const double ppl = std::exp(log_ppl.mean), base_ppl = std::exp(log_base.mean);
  result.perplexity = {ppl, ppl * log_ppl.error};
  result.base_perplexity = {base_ppl, base_ppl * log_base.error};
  result.correlation = covariance / (log_ppl.error * log_base.error);
  result.log_ratio = MeanDifference(nll, base_nll);
  const double ratio = std::exp(result.log_ratio.mean);
  result.ratio = {ratio, ratio * result.log_ratio.error};
  const double variance = ppl * ppl * log_ppl.error * log_ppl.error +
                          base_ppl * base_ppl * log_base.error * log_base.error -
                          2 * ppl * base_ppl * covariance;
  result.difference = {ppl - base_ppl, std::sqrt(std::max(variance, 0.0))};
  result.kld = Describe(kld);
  result.probability = Describe(change);
  const Estimate mean_square = MeanOf(square);
  const double rms = std::sqrt(mean_square.mean);
  // d sqrt(x) = dx / (2 sqrt(x))
  result.rms_probability = {rms, rms > 0 ? mean_square.error / (2 * rms) : mean_square.error};
  result.same_top = MeanOf(same);
  return result;
}

std::vector<TokenDivergence> Diverge(const TextWindows& text, LogitRows& base, LogitRows& rows,
                                     ThreadPool& pool) {
  const size_t vocab = static_cast<size_t>(rows.vocab());
  if (base.vocab() != rows.vocab()) {
    throw Error("eval.vocabulary", text.name,
                "the base has a vocabulary of " + std::to_string(base.vocab()) +
                    ", the model one of " + std::to_string(rows.vocab()),
                "compare a model with the one that it was made from");
  }
  Progress progress(text.name + " KL divergence", text.windows.size());
  std::vector<TokenDivergence> tokens;
  double sum = 0;
  for (size_t w = 0; w < text.windows.size(); ++w) {
    const TextWindows::Window& window = text.windows[w];
    const std::span<const int32_t> targets =
        text.tokens(window).last(static_cast<size_t>(window.scored));
    base.Begin(w);
    rows.Begin(w);
    for (size_t begin = 0; begin < targets.size();) {
      const size_t count = std::min(RowsAtATime(rows.vocab()), targets.size() - begin);
      const std::span<const float> base_logits = base.Next(count);
      const std::span<const float> logits = rows.Next(count);
      const size_t first = tokens.size();
      tokens.resize(first + count);
      pool.ParallelFor(count, 1, [&](size_t from, size_t to) {
        for (size_t i = from; i < to; ++i) {
          tokens[first + i] = CompareLogits(base_logits.subspan(i * vocab, vocab),
                                            logits.subspan(i * vocab, vocab), targets[begin + i]);
        }
      });
      for (size_t i = first; i < tokens.size(); ++i) {
        sum += tokens[i].kld;
        if (std::isfinite(tokens[i].kld + tokens[i].nll + tokens[i].base_nll)) continue;
        throw Error("eval.not_finite", text.name + " window " + std::to_string(w),
                    "a model's output is not finite",
                    "its weights may be damaged or overflow; try --precision f32");
      }
      begin += count;
    }
    char note[48];
    std::snprintf(note, sizeof(note), "mean KLD %.6f", sum / static_cast<double>(tokens.size()));
    progress.Advance(1, note);
  }
  return tokens;
}

}  // namespace flatquant
