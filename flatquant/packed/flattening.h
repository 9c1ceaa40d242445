#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flatquant/base/tensor.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/packed_model.h"

// Flattened sites (FORMAT.md, "Flattened sites"): one constant step for all tokens and
// channels, made possible by giving a channel whose range exceeds the grid several
// columns, each of which holds a piece of its integer.
namespace flatquant {

// Column `width + i` of the site's linears reads row i: a piece of a channel. Column
// c < width reads channel c, piece 0.
struct ExtraColumn {
  int32_t channel = 0;
  int32_t piece = 0;

  friend bool operator==(const ExtraColumn&, const ExtraColumn&) = default;
  friend bool operator<(const ExtraColumn& a, const ExtraColumn& b) {
    return a.channel != b.channel ? a.channel < b.channel : a.piece < b.piece;
  }
};

// A channel's integer has at most 16 bits, so that all arithmetic on it is exact in
// floats too, and no grid is that fine.
inline constexpr int64_t kLargestFlattenedCode = 32767;

// Columns of a flattened site: sums of products of 8-bit integers stay below 2^31.
inline constexpr int64_t kMostFlattenedColumns = (int64_t{1} << 17) - 1;

// The tensor of PackedSite::extra_columns; undefined for none. The rows must be sorted.
Tensor PackExtraColumns(std::span<const ExtraColumn> columns);
std::vector<ExtraColumn> UnpackExtraColumns(const Tensor& tensor);

// Throws packed.bad_value unless the rows of an I32 [n, 2] are sorted, name channels
// of [0, width), and number each channel's pieces without gaps, within 16 bits.
// title: what to call the tensor in errors; where: the directory or model.
void CheckExtraColumns(const Tensor& tensor, int64_t width, int act_bits, const std::string& title,
                       const std::string& where);

// Columns of the weights of a site that has `width` channels.
int64_t ColumnsOf(const PackedSite& site, int64_t width);

// The shape of a linear's stored weight: ShapeOf, but as many columns as its site has.
LinearShape StoredShape(const ModelConfig& config, const PackedBlock& block, Linear which);

}  // namespace flatquant
