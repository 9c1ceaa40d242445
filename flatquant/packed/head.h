#pragma once

#include "flatquant/base/tensor.h"
#include "flatquant/packed/packed_model.h"

// The output projection of a packed model, which it may share with its embedding.
namespace flatquant {

// The matrix [vocab, hidden] of the output projection as it is stored, and the
// embedding table likewise: the same tensor where they are tied. Views: `model`
// keeps the memory.
PackedLinear HeadLinear(const PackedModel& model);
PackedLinear EmbeddingTable(const PackedModel& model);

// The activation that enters a quantized output projection is quantized too, so that
// integers are multiplied: weights and activations in 8 bits cost less than 0.02 of
// WikiText-2's perplexity of 28 on a network of 43 million parameters.
inline constexpr int kHeadActBits = 8;

// Rounds the output projection, which must be float, to integers of `bits` (2..8)
// with one scale per row; a tied embedding with it. 8 bits take the row's largest
// magnitude as the last step; fewer bits search the range of the least squared error.
// act_bits: of the activations that enter it (PackedHead).
void QuantizeHead(int bits, int act_bits, PackedModel* model);

// All of W [rows, cols] as float32.
Tensor Dequantize(const PackedLinear& linear, int64_t rows, int64_t cols);

}  // namespace flatquant
