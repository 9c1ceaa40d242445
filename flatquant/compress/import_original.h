#pragma once

#include <filesystem>

#include "flatquant/model/config.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

namespace flatquant {

// A real-quantized checkpoint of the original implementation ("format": "packed_int4",
// what its --quantized_save writes) as a packed model. Per block, under
// "model.layers.N.":
//
//   *_proj.linear.weight                  U8 [rows, cols / 2], nibbles as in FORMAT.md
//   quantizer.model.layers.N.*_proj.linear
//       .scale, .zero                     [rows, 1]; zero must be 0: symmetric
//       .maxq                             integer, 2^(bits - 1) - 1
//   *_proj.linear.bias                    [rows], where the network has one
//   *_proj.act_quantizer.clip_factor_a_max, _min       [1] logits
//   self_attn.{k,v}_cache_quantizer.clip_factor_a_max, _min
//   self_attn.ln_trans, mlp.up_gate_trans, mlp.down_trans   .matrix_left, .matrix_right
//   self_attn.o_trans, self_attn.kcache_trans               .matrix
//   input_layernorm.weight, post_attention_layernorm.weight, with the diagonals
//
// and model.embed_tokens.weight, model.norm.weight, lm_head.weight (not where tied). The
// inverses, diagonals and weight clips that are there too are folded already and left
// out. K's inverse transpose is computed anew in float64.
//
// config: of the model that was quantized. scheme: the file names no widths of
// activations and cache; those of a config.json beside it are compared, and the weights'
// must be those of maxq.
//
// Errors: original.missing_tensor, original.unexpected_tensor, original.wrong_tensor (shape
// or element type), original.asymmetric, original.bits (the scheme's widths are not the
// file's), original.bad_value (NaN, infinity), transforms.singular, transforms.wrong_shape;
// also checkpoint.*, safetensors.*, file.*.
PackedModel ImportOriginal(const std::filesystem::path& checkpoint, const ModelConfig& config,
                           const Scheme& scheme);

}  // namespace flatquant
