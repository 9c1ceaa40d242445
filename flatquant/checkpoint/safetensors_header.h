#pragma once

#include <string>
#include <string_view>

#include "flatquant/checkpoint/safetensors.h"

namespace flatquant {

// The JSON part of a safetensors file: fields, types, names and dtypes are
// checked; entries come in the header's order with begin and end as written
// (bytes from the start of the data). Whether they fit the file is the caller's
// question. Memory stays proportional to the header, whatever it says.
SafetensorsLayout ParseSafetensorsHeader(std::string_view header, const std::string& where);

}  // namespace flatquant
