#include "flatquant/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

double Mean(std::span<const float> values) {
  double sum = 0;
  for (float value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

}  // namespace

Estimate MeanOf(std::span<const float> values) {
  FLATQUANT_CHECK(!values.empty());
  return {Mean(values), std::sqrt(CovarianceOfMeans(values, values))};
}

Estimate MeanDifference(std::span<const float> a, std::span<const float> b) {
  FLATQUANT_CHECK(!a.empty() && a.size() == b.size());
  // Two passes over the differences: their variance may be tiny beside a's and b's.
  const double n = static_cast<double>(a.size());
  double sum = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) - b[i];
  const double mean = sum / n;
  for (size_t i = 0; i < a.size(); ++i) {
    const double off = static_cast<double>(a[i]) - b[i] - mean;
    squares += off * off;
  }
  return {mean, a.size() < 2 ? std::numeric_limits<double>::quiet_NaN()
                             : std::sqrt(squares / (n - 1) / n)};
}

double CovarianceOfMeans(std::span<const float> a, std::span<const float> b) {
  FLATQUANT_CHECK(!a.empty() && a.size() == b.size());
  if (a.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  const double n = static_cast<double>(a.size());
  const double mean_a = Mean(a), mean_b = Mean(b);
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - mean_a) * (b[i] - mean_b);
  return sum / (n - 1) / n;
}

double Percentile(std::span<const float> sorted, double fraction) {
  FLATQUANT_CHECK(!sorted.empty() && fraction >= 0 && fraction <= 1);
  const double place = fraction * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(place);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double part = place - static_cast<double>(below);
  return (1 - part) * sorted[below] + part * sorted[above];
}

}  // namespace flatquant
