#pragma once

#include <nlohmann/json.hpp>

#include "flatquant/compress/report.h"

namespace flatquant::compress {

// A block's report as it stands in report.json and in the state of a job.
nlohmann::ordered_json ToJson(const BlockReport& report);

// The way back. Throws nlohmann::json::exception where a field is missing or has
// another type.
BlockReport BlockReportFromJson(const nlohmann::json& json);

}  // namespace flatquant::compress
