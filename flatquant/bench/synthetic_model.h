#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/packed/packed_model.h"

namespace flatquant::bench {

// The models that a benchmark compares, on equal weights' shapes:
//   bf16       weights and KV cache in bfloat16
//   int4       W4A4KV4 without transforms
//   quarot     and with Hadamard-sized transforms online at attn_out, at mlp_out and on
//              K; those of attn_in and mlp_in are folded into weights, as QuaRot does
//   flatquant  and with a Kronecker transform at every site and one on K
enum class Variant : uint8_t { kBF16, kInt4, kQuaRot, kFlatQuant };

std::string_view VariantName(Variant variant);
std::vector<std::string> VariantNames();
Variant ParseVariant(std::string_view name);  // Errors: bench.unknown_variant

// Of the quantized variants: 2..8, or 16 for floats.
struct SyntheticBits {
  int head = 8;   // lm_head
  int cache = 4;  // K and V
};

// A model of this shape with random contents, made in memory in seconds: random
// codes or floats that keep activations at their size, random orthogonal
// transforms. Its blocks share one set of source weights, which the runtime copies
// into its own layout block by block, so that every block's weights are read from
// their own memory.
PackedModel SyntheticModel(const ModelConfig& config, Variant variant, const SyntheticBits& bits,
                           uint64_t seed);

// L and R of the transform of a width: L * R = width, L <= R, as near as can be.
struct Factors {
  int64_t left;
  int64_t right;
};
Factors NearestFactors(int64_t width);

}  // namespace flatquant::bench
