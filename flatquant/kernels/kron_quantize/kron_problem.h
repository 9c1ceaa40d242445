#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/kron_quantize/tile_operands.h"

// A random input of kron_quantize, and its result in double: what the tests share.
namespace flatquant::kernel_testing {

enum class InputStage { kNone, kNorm, kSwiglu };

struct KronProblem {
  int64_t left_size = 1, right_size = 1, tokens = 0;
  InputStage stage = InputStage::kNone;
  bool has_left = true, has_right = true;
  AlignedBuffer<float> left, right, x, weight, up;
  KronTransform transform;

  int64_t width() const { return left_size * right_size; }

  KronQuantizeArgs Args() const {
    KronQuantizeArgs args;
    args.x = x.data();
    args.tokens = tokens;
    args.transform = &transform;
    if (stage == InputStage::kNorm) args.input = {weight.data(), kEps, nullptr};
    if (stage == InputStage::kSwiglu) args.input = {nullptr, 0, up.data()};
    return args;
  }

  static constexpr float kEps = 1e-3f;
};

inline void Pack(KronProblem& p, const KronQuantizeKernel& kernel) {
  const auto bytes = [](const AlignedBuffer<float>& floats, bool has) {
    return has ? reinterpret_cast<const std::byte*>(floats.data()) : nullptr;
  };
  p.transform = PackKronTransform(p.left_size, bytes(p.left, p.has_left), p.right_size,
                                  bytes(p.right, p.has_right), &kernel);
}

// x has the given standard deviation.
inline KronProblem MakeProblem(Rng& rng, int64_t left_size, int64_t right_size, int64_t tokens,
                               InputStage stage, double deviation = 1.0) {
  KronProblem p;
  p.left_size = left_size;
  p.right_size = right_size;
  p.tokens = tokens;
  p.stage = stage;
  p.left = RandomFloats(rng, left_size * left_size);
  p.right = RandomFloats(rng, right_size * right_size);
  p.x = RandomFloats(rng, tokens * p.width(), deviation);
  p.weight = RandomFloats(rng, p.width());
  p.up = RandomFloats(rng, tokens * p.width());
  return p;
}

inline KronProblem RandomProblem(Rng& rng, const KronQuantizeKernel& kernel) {
  const int64_t left_size = RandomSize(rng, 40), right_size = RandomSize(rng, 70);
  const auto stage = static_cast<InputStage>(rng.Below(3));
  KronProblem p = MakeProblem(rng, left_size, right_size, RandomSize(rng, 20), stage);
  p.has_left = rng.Below(4) != 0;
  p.has_right = rng.Below(4) != 0;
  Pack(p, kernel);
  return p;
}

// One token of left^T X right in double after the input stage, and for each element
// the sum of the magnitudes of its terms, in which errors are measured.
struct KronResult {
  std::vector<double> y;
  std::vector<double> magnitude;
};

inline std::vector<double> StagedInput(const KronProblem& p, int64_t token) {
  const size_t width = static_cast<size_t>(p.width());
  const size_t first = static_cast<size_t>(token) * width;
  std::vector<double> x(width);
  double squares = 0;
  for (size_t c = 0; c < width; ++c) squares += std::pow(double{p.x[first + c]}, 2);
  const double norm = 1 / std::sqrt(squares / static_cast<double>(width) + KronProblem::kEps);
  for (size_t c = 0; c < width; ++c) {
    x[c] = p.x[first + c];
    if (p.stage == InputStage::kNorm) x[c] *= norm * p.weight[c];
    if (p.stage == InputStage::kSwiglu) x[c] *= p.up[first + c] / (1 + std::exp(-x[c]));
  }
  return x;
}

inline KronResult Expected(const KronProblem& p, int64_t token) {
  const size_t L = static_cast<size_t>(p.left_size), R = static_cast<size_t>(p.right_size);
  const std::vector<double> x = StagedInput(p, token);
  std::vector<double> half(L * R), half_magnitude(L * R);
  KronResult result{std::vector<double>(L * R), std::vector<double>(L * R)};
  for (size_t a = 0; a < L; ++a) {
    for (size_t b = 0; b < R; ++b) {
      for (size_t j = 0; j < R; ++j) {
        const double m = p.has_right ? p.right[b * R + j] : static_cast<double>(b == j);
        half[a * R + j] += x[a * R + b] * m;
        half_magnitude[a * R + j] += std::abs(x[a * R + b] * m);
      }
    }
  }
  for (size_t a = 0; a < L; ++a) {
    for (size_t i = 0; i < L; ++i) {
      const double m = p.has_left ? p.left[a * L + i] : static_cast<double>(a == i);
      for (size_t j = 0; j < R; ++j) {
        result.y[i * R + j] += m * half[a * R + j];
        result.magnitude[i * R + j] += std::abs(m) * half_magnitude[a * R + j];
      }
    }
  }
  return result;
}

// Relative to the magnitude: two nested sums of R and of L terms; the input stage's
// error; with tiles, two products. One of two terms drops low low (2^-7 2^-8) and the
// rest of each operand after its low term (2^-15 and 2^-16), one of one term rounds
// each operand to 2^-8 (and the second order).
inline double RelativeTolerance(const KronProblem& p, int bits) {
  double tolerance = kEpsilon * static_cast<double>(p.left_size + p.right_size);
  if (p.stage == InputStage::kNorm) {
    tolerance += kEpsilon * (static_cast<double>(p.width()) / 2 + 6);
  }
  if (p.stage == InputStage::kSwiglu) tolerance += 0x1p-22 + 5 * kEpsilon;
  if (p.transform.kernel->reads_tiles && !p.transform.is_identity()) {
    tolerance += bits <= kOneTermBits ? 4.1 * 0x1p-8 : 2 * 2.5 * 0x1p-15;
  }
  return tolerance;
}

}  // namespace flatquant::kernel_testing
