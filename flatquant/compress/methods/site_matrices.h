#pragma once

#include <cstdint>
#include <functional>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/transform.h"
#include "flatquant/model/config.h"
#include "flatquant/packed/scheme.h"

namespace flatquant::compress {

// Gives a block the matrices that the scheme's grids can profit from: a Kronecker pair at
// attn_in, mlp_in and mlp_out and the mixing of heads at attn_out where weights or
// activations are quantized, P_h where K is, P_v where V is or the output projection's
// operands are. In this order, so that one seed gives one set of matrices.
//
// split: the sizes of a width's pair. make: a matrix of this order; it is not asked for
// 1 x 1 matrices, which could only rescale their site.
void AddSiteMatrices(const ModelConfig& config, const Scheme& scheme,
                     const std::function<KronShape(int64_t)>& split,
                     const std::function<InvertibleMatrix(int64_t)>& make,
                     BlockParameters* parameters);

// Whether a scheme quantizes what enters the linears or their weights.
bool QuantizesLinears(const Scheme& scheme);

}  // namespace flatquant::compress
