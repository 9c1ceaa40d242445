#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flatquant::compress {

// Flattened sites (packed/FORMAT.md): an activation with one constant step, whose wide
// channels are cut into pieces, each a column that the linears multiply on its own.

// What each column holds: piece `piece` of channel `channel` of the activation.
struct ColumnMap {
  int64_t width = 0;   // channels
  int bits = 4;        // of the grid; its largest integer is top = 2^(bits-1) - 1
  float scale = 1;     // s; a whole piece is s * top
  at::Tensor channel;  // int64 [columns]: 0 .. width-1, then the extra columns'
  at::Tensor piece;    // int64 [columns]
  at::Tensor is_last;  // bool [columns]: the channel has no further piece

  bool defined() const { return channel.defined(); }
  ColumnMap To(at::Device device) const;
};

// channel, piece: as in ColumnMap, the columns from `width` on sorted; on the CPU.
ColumnMap MakeColumnMap(int bits, float scale, int64_t width, const at::Tensor& channel,
                        const at::Tensor& piece);

// x [..., width] in columns [..., columns], unquantized: sign(x) clamp(|x| - i T, 0, T)
// with T = s top, the last piece of a channel without its upper bound, so that the
// pieces of every x add up to it.
at::Tensor SplitChannels(const at::Tensor& x, const ColumnMap& map);

// The same quantized: with q = round(x / s), s sign(q) clamp(|q| - i top, 0, top), in
// `type`.
at::Tensor QuantizeColumns(const at::Tensor& x, const ColumnMap& map, at::ScalarType type);

// Which pieces the columns of a weight hold. Columns that read the same piece of an
// activation hold one piece of its weight each.
//   weight [rows, width] -> [rows, columns]: sign(w) clamp(|w| - k T, 0, T) with k the
// column's entry of `piece`, T the threshold, the last piece of a channel without its
// upper bound. pieces: int64 [width], how many each channel has.
at::Tensor SplitWeight(const at::Tensor& weight, const at::Tensor& channel, const at::Tensor& piece,
                       const at::Tensor& pieces, double threshold);

}  // namespace flatquant::compress
