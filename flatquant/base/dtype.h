#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace flatquant {

// Element types that appear in checkpoints. Names and sizes are those of the
// safetensors specification.
enum class DType : uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool };

// Bytes per element.
size_t DTypeSize(DType type) noexcept;

// The safetensors name: "F32", "BF16", ...
std::string_view DTypeName(DType type) noexcept;

// The inverse of DTypeName; empty for a name that the project does not know.
std::optional<DType> ParseDType(std::string_view name) noexcept;

constexpr bool IsFloat(DType type) {
  return type == DType::kF64 || type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

}  // namespace flatquant
