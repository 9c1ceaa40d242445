#pragma once

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/compress/weights/gptq.h"

namespace flatquant::compress {

struct GptqBlockOptions {
  GptqOptions gptq;
  int64_t group_size = 0;   // columns that share a scale; 0: one scale per row
  int64_t batch = 4;        // windows at a time
  bool is_followed = true;  // what leaves the block is wanted
};

// Chooses the codes of a block's weights by GPTQ, site after site in the order of the
// forward pass: a site's Hessian is that of its transformed, quantized activations
// over stream->quantized_inputs(), the sites before it having their quantized weights.
// Takes those inputs through the quantized block on the way, as RunQuantizedBlock would.
// gptq.mse is not for weights of flattened sites, where one step serves all rows.
// folded: Fold's result in float64. scheme.weight_bits < 16. where: the block, for
// errors. Errors: gptq.singular.
QuantizedWeights GptqBlock(const ModelConfig& config, const BlockTensors& folded,
                           const BlockParameters& parameters, const Scheme& scheme,
                           const GptqBlockOptions& options, const std::string& where,
                           ResidualStream* stream);

}  // namespace flatquant::compress
