#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/model/config.h"

namespace flatquant::compress {

// Parameters of all blocks from a file: our own transforms.safetensors
// (import_transforms.h), or the original implementation's flat_matrices.pth, whose
// entries are named per layer number:
//
//   self_attn.ln_trans, mlp.up_gate_trans, mlp.down_trans   .matrix_left,
//       .matrix_right, .matrix_left_inv, .matrix_right_inv (the inverse
//       transposes, whatever the name says), .diag_scale
//   self_attn.o_trans, .kcache_trans, .vcache_trans         .matrix, .matrix_inv_t
//   *_proj.clip_factor_w_max, .clip_factor_w_min            [rows, 1] logits
//   *_proj.act_quantizer.clip_factor_a_max, ..._min         [1] logits
//   self_attn.k_cache_quantizer, .v_cache_quantizer         .clip_factor_a_max, ..._min
//
// A kind that no layer of the file has (it was trained without) is left out;
// everything that is there must be complete.
class LearnedParameters {
 public:
  // Errors: transforms.layers (the file has other layers than the model),
  // transforms.missing, transforms.wrong_shape, transforms.not_finite,
  // transforms.singular, transforms.bad_inverse (a stored inverse does not belong
  // to its matrix); also pth.* and file.*; for a name that ends in .safetensors those of
  // ReadTransforms.
  static LearnedParameters Open(const std::filesystem::path& file, const ModelConfig& config,
                                at::Device device);

  // The parameters of one block, nothing trainable; they live as long as this.
  const BlockParameters& Block(int64_t layer) const& {
    return blocks_.at(static_cast<size_t>(layer));
  }
  const BlockParameters& Block(int64_t layer) const&& = delete;

 private:
  std::vector<BlockParameters> blocks_;
};

}  // namespace flatquant::compress
