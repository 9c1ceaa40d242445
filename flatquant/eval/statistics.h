#pragma once

#include <span>

namespace flatquant {

// A mean and its standard error; the error is NaN of fewer than two values.
struct Estimate {
  double mean = 0;
  double error = 0;
};

// error = sample standard deviation / sqrt(n).
Estimate MeanOf(std::span<const float> values);

// The error of the mean of a[i] - b[i]: of two results on the same items, which
// differ less than their own errors say.
Estimate MeanDifference(std::span<const float> a, std::span<const float> b);

// The covariance of the means of a and b; with a == b the square of MeanOf's error.
double CovarianceOfMeans(std::span<const float> a, std::span<const float> b);

// The value below which `fraction` of the values lie, interpolated linearly between
// neighbours. sorted: ascending, not empty; fraction in [0, 1].
double Percentile(std::span<const float> sorted, double fraction);

}  // namespace flatquant
