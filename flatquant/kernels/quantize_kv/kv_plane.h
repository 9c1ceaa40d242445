#pragma once

#include <cstddef>
#include <cstdint>

namespace flatquant {

// How a K or V vector is stored. Integers of 2..4 bits are nibbles, even element
// low; integers of 5..8 bits are bytes.
enum class KvFormat : uint8_t { kF32, kBF16, kNibble, kByte };

constexpr size_t KvRowBytes(KvFormat format, int64_t head_dim) {
  const size_t n = static_cast<size_t>(head_dim);
  switch (format) {
    case KvFormat::kF32:
      return n * 4;
    case KvFormat::kBF16:
      return n * 2;
    case KvFormat::kNibble:
      return (n + 1) / 2;
    case KvFormat::kByte:
      return n;
  }
  return 0;
}

// The K or the V cache of one layer, memory owned by somebody else. The vector of
// KV head h at position p is number h * capacity + p: a head's positions lie
// together, as attention reads them. Quantized elements stand for
//   (q - zero) * scale
struct KvPlane {
  KvFormat format = KvFormat::kF32;
  int bits = 16;  // 2..8 for kNibble and kByte
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t capacity = 0;     // positions
  uint8_t* data = nullptr;  // [heads, capacity, KvRowBytes]
  float* scale = nullptr;   // [heads, capacity], integer formats only
  uint8_t* zero = nullptr;  // [heads, capacity], integer formats only
};

}  // namespace flatquant
