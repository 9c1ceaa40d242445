#pragma once

#include <string>

#include "flatquant/packed/packed_model.h"

// Sections of the page that a packed model alone gives.
namespace flatquant {

std::string ProvenanceSection(const PackedModel& model);
std::string SizesSection(const PackedModel& model);

// By how much each site, K and V shrink a token's range. plots: draw, which needs gnuplot.
std::string ClipsSection(const PackedModel& model, bool plots);

}  // namespace flatquant
