#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/model/config.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// What a network is.
std::vector<std::string> ConfigLines(const ModelConfig& config);
nlohmann::ordered_json ConfigJson(const ModelConfig& config);

// What quantization made of it: scheme, sites with transforms and grids, cache,
// sizes, provenance. Blocks that look alike share a line.
std::vector<std::string> PackedLines(const PackedModel& model);
nlohmann::ordered_json PackedJson(const PackedModel& model);

}  // namespace flatquant
