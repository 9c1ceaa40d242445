#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/transform.h"
#include "flatquant/packed/scheme.h"

namespace flatquant::compress {

// A site with one constant step for its activation and (mostly) one for each weight, whose wide
// channels have several columns. The widths override the scheme's.
struct SiteFlattening {
  int bits = 4;             // of the activation and the weights
  float act_scale = 1;      // s, see ColumnMap
  at::Tensor channel;       // int64 [columns], see ColumnMap; undefined: not flattened
  at::Tensor piece;         // int64 [columns], of the activation
  at::Tensor weight_piece;  // int64 [columns], of the weights
  // int64 [width]: pieces of each channel in the weights.
  at::Tensor weight_pieces;
  // Of the site's linears, in LinearsOf order, one for all rows; empty: each row has its
  // own, and weight_pieces are 1.
  std::vector<float> weight_scales;

  bool defined() const { return channel.defined(); }
};

// Everything that a method chooses for one block; what is left at its default
// changes nothing. Tensors are float32 and may require gradients.
struct BlockParameters {
  struct SiteParameters {
    // The Kronecker pair of the online transform. At attn_out, `left` mixes the
    // heads and `right` stays the identity: the head_dim half is `value`.
    InvertibleMatrix left;
    InvertibleMatrix right;
    // Multiplies the activation, divides the weights' columns: [width] or
    // undefined. Not at attn_out.
    at::Tensor diagonal;
    // Shared by the linears of the site, or one per linear.
    std::vector<ClipLogits> act_clips = {ClipLogits{}};
    // Instead of matrices and clips; not together with the corrections
    // of learned weights.
    SiteFlattening flattening;
  };

  std::array<SiteParameters, 4> sites;     // indexed by Site
  InvertibleMatrix key;                    // P_h: K after RoPE; Q takes P_h^-T
  InvertibleMatrix value;                  // P_v: folded into v and o
  std::array<ClipLogits, 7> weight_clips;  // indexed by Linear, [rows, 1]
  ClipLogits k_clip;                       // [1]
  ClipLogits v_clip;
  // Learned rounding: what is added to a folded weight before it is rounded, in
  // steps of its row's unclipped grid: [rows, cols], indexed by Linear, undefined
  // without. It only chooses codes: folding knows nothing of it, so that with
  // quantizers off the block still equals the original.
  std::array<at::Tensor, 7> weight_corrections;

  SiteParameters& site(Site which) { return sites[static_cast<size_t>(which)]; }
  const SiteParameters& site(Site which) const { return sites[static_cast<size_t>(which)]; }

  // The widths that a site and a linear have under a scheme.
  int act_bits(Site which, const Scheme& scheme) const;
  int weight_bits(Linear which, const Scheme& scheme) const;

  // What is trained: matrices and diagonals; clips, which learn ten times faster;
  // corrections, whose learning rate is in steps of the grid.
  std::vector<at::Tensor> TransformTensors() const;
  std::vector<at::Tensor> ClipTensors() const;
  std::vector<at::Tensor> CorrectionTensors() const;
};

// Trainable corrections of zero for every linear of a block.
void AddWeightCorrections(const BlockWeights& weights, BlockParameters* parameters);

}  // namespace flatquant::compress
