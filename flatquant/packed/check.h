#pragma once

#include <string>

#include "flatquant/packed/packed_model.h"

namespace flatquant {

// Whether a model in memory is one that the format can hold: bit widths, clips,
// every tensor of the right type, shape and values, none to spare. Reads no
// weights. `where` names the model in errors.
// Errors: packed.bad_config, packed.missing_tensor, packed.wrong_shape,
// packed.wrong_dtype, packed.bad_value, packed.extra_tensor.
void CheckPackedModel(const PackedModel& model, const std::string& where);

// Reads every quantized weight: all codes within their bits' range, left-over
// nibbles zero. The writer does this, and `flatquant inspect`; the reader does not,
// because it would touch every page of the files, and a code beyond its range is
// still an integer that nibbles or bytes hold, so nothing downstream can overflow.
// Errors: packed.bad_value.
void CheckCodes(const PackedModel& model, const std::string& where);

}  // namespace flatquant
