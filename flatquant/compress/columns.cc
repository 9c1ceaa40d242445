#include "flatquant/compress/columns.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

// sign(v) clamp(|v| - offset, 0, limit), without the limit where `unlimited`.
at::Tensor Piece(const at::Tensor& v, const at::Tensor& offset, double limit,
                 const at::Tensor& unlimited) {
  const at::Tensor size = (v.abs() - offset.to(v.scalar_type())).clamp_min(0);
  const at::Tensor limited = size.clamp_max(limit);
  return v.sign() * (unlimited.defined() ? at::where(unlimited, size, limited) : limited);
}

}  // namespace

ColumnMap ColumnMap::To(at::Device device) const {
  return {width, bits, scale, channel.to(device), piece.to(device), is_last.to(device)};
}

ColumnMap MakeColumnMap(int bits, float scale, int64_t width, const at::Tensor& channel,
                        const at::Tensor& piece) {
  FLATQUANT_CHECK(channel.size(0) >= width && channel.sizes() == piece.sizes());
  // The greatest piece of each channel.
  const at::Tensor last = at::zeros({width}, piece.options());
  const auto from = channel.accessor<int64_t, 1>();
  const auto number = piece.accessor<int64_t, 1>();
  auto largest = last.accessor<int64_t, 1>();
  for (int64_t c = 0; c < channel.size(0); ++c) {
    largest[from[c]] = std::max(largest[from[c]], number[c]);
  }
  return {width, bits, scale, channel, piece, piece == last.index_select(0, channel)};
}

at::Tensor SplitChannels(const at::Tensor& x, const ColumnMap& map) {
  const double threshold = static_cast<double>(map.scale) * LargestCode(map.bits);
  const at::Tensor v = x.index_select(-1, map.channel);
  return Piece(v, map.piece.to(at::kDouble) * threshold, threshold, map.is_last);
}

at::Tensor QuantizeColumns(const at::Tensor& x, const ColumnMap& map, at::ScalarType type) {
  const double top = LargestCode(map.bits);
  // A tensor, because a division by a number may become a product with its reciprocal.
  const at::Tensor scale = at::full({1}, map.scale, x.options());
  const at::Tensor q = (x / scale).round().index_select(-1, map.channel);
  return (Piece(q, map.piece * static_cast<int64_t>(top), top, {}) * scale).to(type);
}

at::Tensor SplitWeight(const at::Tensor& weight, const at::Tensor& channel, const at::Tensor& piece,
                       const at::Tensor& pieces, double threshold) {
  const at::Tensor is_last = piece == pieces.index_select(0, channel) - 1;
  return Piece(weight.index_select(1, channel), piece.to(at::kDouble) * threshold, threshold,
               is_last);
}

}  // namespace flatquant::compress
