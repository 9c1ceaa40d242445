#include "flatquant/base/dtype.h"

#include <array>

namespace flatquant {
namespace {

struct Entry {
  DType type;
  std::string_view name;
  size_t size;
};

constexpr std::array<Entry, 10> kEntries{{{DType::kF64, "F64", 8},
                                          {DType::kF32, "F32", 4},
                                          {DType::kF16, "F16", 2},
                                          {DType::kBF16, "BF16", 2},
                                          {DType::kI64, "I64", 8},
                                          {DType::kI32, "I32", 4},
                                          {DType::kI16, "I16", 2},
                                          {DType::kI8, "I8", 1},
                                          {DType::kU8, "U8", 1},
                                          {DType::kBool, "BOOL", 1}}};

}  // namespace

size_t DTypeSize(DType type) noexcept { return kEntries[static_cast<size_t>(type)].size; }

std::string_view DTypeName(DType type) noexcept { return kEntries[static_cast<size_t>(type)].name; }

std::optional<DType> ParseDType(std::string_view name) noexcept {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return entry.type;
  }
  return std::nullopt;
}

}  // namespace flatquant
