#pragma once

#include <array>

#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/weights/quantized_weight.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

namespace flatquant::compress {

// The original block with the parameters folded in, in `type`, quantizers off:
// it computes what the original does. Differentiable.
BlockTensors Fold(const ModelConfig& config, const BlockWeights& weights,
                  const BlockParameters& parameters, at::ScalarType type);

// Quantizes a folded block as `scheme` says, with straight-through gradients: its
// weights (corrected, with the learned clips), activations, K and V.
// weight_type: what the quantized weights are held in (bfloat16 spares a
// conversion where the matrix products take that).
BlockTensors Quantized(BlockTensors folded, const BlockParameters& parameters, const Scheme& scheme,
                       at::ScalarType weight_type = at::kFloat);

// The grid of a linear's folded weight: one step per row from its range, or at a
// flattened site the one step of the whole weight.
WeightGrid WeightGridOf(const at::Tensor& weight, const BlockParameters& parameters, Linear which,
                        const Scheme& scheme, int64_t group_size = 0);

// A block's weights on their grids, indexed by Linear.
using QuantizedWeights = std::array<QuantizedWeight, 7>;

// Rounds the weights (corrected, with the learned clips) to the nearest code.
// folded: Fold's result in float64. scheme.weight_bits < 16.
QuantizedWeights RoundWeights(const BlockTensors& folded, const BlockParameters& parameters,
                              const Scheme& scheme, int64_t group_size = 0);

// The packed form of a folded block. With scheme.weight_bits = 16 `quantized` is not
// looked at: weights are rounded to the source's element type.
// folded: Fold's result in float64.
PackedBlock PackBlock(const BlockTensors& folded, const BlockWeights& weights,
                      const QuantizedWeights& quantized, const BlockParameters& parameters,
                      const Scheme& scheme);

// The folded block in float32 with the scheme's quantizers of activations, K and V;
// its weights are not quantized.
BlockTensors FloatForward(const BlockTensors& folded, const BlockParameters& parameters,
                          const Scheme& scheme);

// The block as the runtime computes it: FloatForward with, below 16 bits, weights
// `quantized`.
BlockTensors QuantizedForward(const BlockTensors& folded, const QuantizedWeights& quantized,
                              const BlockParameters& parameters, const Scheme& scheme);

}  // namespace flatquant::compress
