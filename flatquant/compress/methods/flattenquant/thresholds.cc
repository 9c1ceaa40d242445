#include "flatquant/compress/methods/flattenquant/thresholds.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

at::Tensor PiecesOf(const at::Tensor& maxima, double threshold) {
  return (maxima / threshold).ceil().clamp_min(1);
}

}  // namespace

Threshold ChooseThreshold(const at::Tensor& maxima, double growth, int top) {
  FLATQUANT_CHECK(growth >= 1);
  const at::Tensor m = maxima.to(at::kCPU, at::kDouble);
  const double largest = m.max().item<double>();
  if (!(largest > 0)) return {1.0, at::ones_like(m).to(at::kLong)};  // nothing to cut
  const double budget = growth * static_cast<double>(m.numel());
  // Fewer pieces than 16 bits hold, one to spare for the rounding of the threshold.
  const double most = static_cast<double>(kLargestFlattenedCode / top - 1);
  double low = largest / most, high = largest;
  const auto fits = [&](double t) { return PiecesOf(m, t).sum().item<double>() <= budget; };
  // The number of pieces falls as T rises: halving finds the step to a millionth.
  if (fits(low)) high = low;
  while (high - low > 1e-6 * high) {
    const double middle = 0.5 * (low + high);
    (fits(middle) ? high : low) = middle;
  }
  return {high, PiecesOf(m, high).to(at::kLong)};
}

SiteFlattening MakeFlattening(int bits, const Threshold& act,
                              const std::vector<Threshold>& weights) {
  const double top = LargestCode(bits);
  SiteFlattening flattening;
  flattening.bits = bits;
  flattening.act_scale = static_cast<float>(act.value / top);
  flattening.weight_pieces = at::ones_like(act.pieces);
  for (const Threshold& weight : weights) {
    flattening.weight_scales.push_back(static_cast<float>(weight.value / top));
    flattening.weight_pieces = at::maximum(flattening.weight_pieces, weight.pieces);
  }
  const auto act_pieces = act.pieces.accessor<int64_t, 1>();
  const auto weight_pieces = flattening.weight_pieces.accessor<int64_t, 1>();
  const int64_t width = act.pieces.size(0);
  std::vector<int64_t> channel, piece, weight_piece;
  const auto add = [&](int64_t j, int64_t i, int64_t k) {
    channel.push_back(j);
    piece.push_back(i);
    weight_piece.push_back(k);
  };
  for (int64_t j = 0; j < width; ++j) add(j, 0, 0);
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t i = 0; i < act_pieces[j]; ++i) {
      for (int64_t k = i == 0 ? 1 : 0; k < weight_pieces[j]; ++k) add(j, i, k);
    }
  }
  flattening.channel = at::tensor(channel, at::kLong);
  flattening.piece = at::tensor(piece, at::kLong);
  flattening.weight_piece = at::tensor(weight_piece, at::kLong);
  return flattening;
}

}  // namespace flatquant::compress
