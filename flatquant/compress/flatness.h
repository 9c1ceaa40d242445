#pragma once

#include <ATen/core/Tensor.h>

#include <array>

#include "flatquant/compress/block_forward.h"
#include "flatquant/model/config.h"

// How evenly a site's channels share what has to be quantized. One scale serves a whole
// token, or a whole row of a weight: a channel much larger than the others takes the
// grid's range for itself and leaves them few codes. A transform is good as far as it
// makes the channels' magnitudes equal, flat when they are sorted and drawn.
namespace flatquant::compress {

// The magnitudes of a site's channels where they are quantized, behind the site's online
// transform: [width], float64.
struct SiteMagnitudes {
  at::Tensor activation;  // Euclidean norm of each channel over all tokens
  at::Tensor weight;      // of each column over the rows of all linears of the site
};

// The magnitudes of all sites of a block, indexed by Site.
//
// block: FullPrecision's result (the original), Fold's or an unpacked block; its
// quantizers are not used, so that the activations are the network's own.
// x: what enters the block, [windows, tokens, hidden], in the element type of the
// block's tensors; one window at a time is computed. rope: at least `tokens` rows.
std::array<SiteMagnitudes, 4> ChannelMagnitudes(const ModelConfig& config, BlockTensors block,
                                                const RopeTables& rope, const at::Tensor& x);

// The distance of the channels' magnitudes m_1 ... m_n from the flat line of the same
// energy, whose height is their root mean square r:
//
//   sqrt( sum_i (m_i / r - 1)^2 / n ) = sqrt(2 - 2 mean(m) / r)
//
// 0: all channels are equal; 1.41: almost everything is in one channel. Neither the
// scale of m nor the order of its channels counts. magnitudes: [n], n >= 1, not
// negative; all zero is flat.
double Flatness(const at::Tensor& magnitudes);

// The flatness numbers of a site, of the original network and behind its transforms.
struct SiteFlatness {
  double activation_before = 0;
  double activation_after = 0;
  double weight_before = 0;
  double weight_after = 0;
};

// Of all sites of a block, indexed by Site. original: FullPrecision's result; folded: the
// same block, folded, of the same element type. x, rope: as for ChannelMagnitudes.
std::array<SiteFlatness, 4> CompareFlatness(const ModelConfig& config, const BlockTensors& original,
                                            const BlockTensors& folded, const RopeTables& rope,
                                            const at::Tensor& x);

}  // namespace flatquant::compress
