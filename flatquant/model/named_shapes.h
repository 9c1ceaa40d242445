#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flatquant/model/config.h"

namespace flatquant {

// Shapes of well-known networks, by name: "tinyllama-1.1b", "llama-2-7b",
// "llama-3-8b", "llama-2-70b", "qwen2.5-7b". Errors: model.unknown_shape.
ModelConfig NamedShape(std::string_view name);
std::vector<std::string> ShapeNames();

}  // namespace flatquant
