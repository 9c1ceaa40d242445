#pragma once

#include <map>
#include <optional>
#include <string>

#include "flatquant/base/tensor.h"
#include "flatquant/compress/block_parameters.h"

namespace flatquant::compress {

// The parameters as transforms.safetensors keeps them: matrices rounded to float32 (their
// inverses follow in float64), nothing that is trained. A run folds with these, so that
// what it writes can be folded again to the same bytes. Corrections of learned weights,
// which are no part of the file, stay.
BlockParameters AsStored(const BlockParameters& parameters);

// What AsStored gave as named tensors, "model.layers.LAYER." first; what changes nothing
// is left out (FORMAT.md, "transforms.safetensors"). None for parameters with a flattened
// site, which have no such form.
std::optional<std::map<std::string, Tensor>> TransformTensors(int64_t layer,
                                                              const BlockParameters& parameters);

}  // namespace flatquant::compress
