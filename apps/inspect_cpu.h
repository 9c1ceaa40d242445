#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace flatquant {

// What this CPU can do, and which kernel each operation would use on it, within
// the limit that FLATQUANT_ISA sets. Errors: kernels.unknown_isa,
// kernels.isa_unavailable.
nlohmann::ordered_json CpuJson();

// The same as lines for people.
std::vector<std::string> CpuLines();

}  // namespace flatquant
