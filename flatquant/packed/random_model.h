#pragma once

#include <cstdint>
#include <string>

#include "flatquant/packed/packed_model.h"

namespace flatquant {

// A packed model with random contents, complete and valid, for tests and
// benchmarks (timing on zeros lies). Every input site but attn_out has a pair of
// matrices, attn_out the left one (over heads); K and Q theirs. All matrices are
// orthogonal but not symmetric, K's with a diagonal, so that a transposition
// shows. Activations keep their size from layer to layer. Without the transforms
// that a scheme does not use: act_bits 16 leaves a site plain, k_bits 16 the
// cache. The same seed gives the same model everywhere.
PackedModel RandomPackedModel(const ModelConfig& config, const Scheme& scheme, uint64_t seed);

// Flattens the sites of a random model that have integers: in place of transforms and
// clips about a third more columns, whose linears get new weights. Activations keep
// their size.
void FlattenRandomModel(uint64_t seed, PackedModel* model);

// Gives every quantized linear of a random model that has more than group_size columns a
// scale per row and group. Activations keep their size.
void GroupRandomModel(uint64_t seed, int64_t group_size, PackedModel* model);

// A Hugging Face config.json that ModelConfig::Parse reads back as `config`: what
// a source directory for WritePackedModel must hold.
std::string ConfigJson(const ModelConfig& config);

}  // namespace flatquant
