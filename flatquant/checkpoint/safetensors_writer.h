#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/tensor_view.h"

namespace flatquant {

// Writes one safetensors file, atomically: the final name appears only when all
// bytes are on disk. Tensors are streamed, never copied. On disk they are
// ordered by falling element size, then by name, and the header is padded with
// spaces to a multiple of 8 bytes, so that every tensor is aligned to its
// element; the same input gives the same bytes.
//
// tensors:  name and data, in any order; data must stay valid during the call
// Errors: safetensors.bad_name (a name given twice, empty, not UTF-8, with a NUL
// byte or equal to "__metadata__"), safetensors.header_too_large, and
// AtomicFile's.
void WriteSafetensors(const std::filesystem::path& path,
                      const std::vector<std::pair<std::string, TensorView>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace flatquant
