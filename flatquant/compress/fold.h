#pragma once

#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

namespace flatquant::compress {

// The original block with the parameters folded in, in `type`, quantizers off:
// it computes what the original does. Differentiable.
BlockTensors Fold(const ModelConfig& config, const BlockWeights& weights,
                  const BlockParameters& parameters, at::ScalarType type);

// Quantizes a folded block as `scheme` says, with straight-through gradients:
// its weights (with the learned clips), and the grids of activations, K and V.
// weight_type: what the quantized weights are held in (bfloat16 spares a
// conversion where the matrix products take that).
BlockTensors Quantized(BlockTensors folded, const BlockParameters& parameters, const Scheme& scheme,
                       at::ScalarType weight_type = at::kFloat);

// The packed form of a folded block: weights rounded to the nearest code (with the
// learned clips), or, at 16 bits, to the source's element type.
// folded: Fold's result in float64.
PackedBlock PackBlock(const BlockTensors& folded, const BlockWeights& weights,
                      const BlockParameters& parameters, const Scheme& scheme);

}  // namespace flatquant::compress
