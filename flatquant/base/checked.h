#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace flatquant {

// Arithmetic on numbers that a file supplied: empty on overflow, never wrapped.
inline std::optional<uint64_t> CheckedAdd(uint64_t a, uint64_t b) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

inline std::optional<uint64_t> CheckedMul(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// The number of elements of a tensor of this shape, or empty on overflow or on
// a negative dimension.
inline std::optional<uint64_t> CheckedElements(std::span<const int64_t> shape) {
  uint64_t count = 1;
  for (int64_t dimension : shape) {
    if (dimension < 0) return std::nullopt;
    const auto next = CheckedMul(count, static_cast<uint64_t>(dimension));
    if (!next) return std::nullopt;
    count = *next;
  }
  return count;
}

}  // namespace flatquant
