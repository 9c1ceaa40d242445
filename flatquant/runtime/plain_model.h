#pragma once

#include "flatquant/model/source_model.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// A full-precision network in the packed form: sites without a transform and
// grids of 16 bits. Weights stay views of the source's mapped files.
PackedModel PlainModel(const SourceModel& source);

}  // namespace flatquant
