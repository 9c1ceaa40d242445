#pragma once

#include "flatquant/compress/block_forward.h"
#include "flatquant/model/config.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant::compress {

// A packed block as it is computed in floating point, float32 on the CPU: weights
// dequantized, with the quantizers of activations, K and V. packed: of a model with
// this configuration, as ReadPackedModel validates it.
BlockTensors Unpack(const ModelConfig& config, const PackedBlock& packed);

}  // namespace flatquant::compress
