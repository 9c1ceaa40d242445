#include "flatquant/base/half.h"

#include <cstring>

namespace flatquant {
namespace {

// Loads and stores go through memcpy: tensors in files are not always aligned.
template <typename From, typename To, typename Convert>
void ConvertArray(const From* from, To* to, size_t n, Convert convert) noexcept {
  const auto* in = reinterpret_cast<const unsigned char*>(from);
  auto* out = reinterpret_cast<unsigned char*>(to);
  for (size_t i = 0; i < n; ++i) {
    From value;
    std::memcpy(&value, in + i * sizeof(From), sizeof(From));
    const To result = convert(value);
    std::memcpy(out + i * sizeof(To), &result, sizeof(To));
  }
}

}  // namespace

float F16ToFloat(uint16_t bits) noexcept {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0)
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Zero or subnormal: the value is mantissa * 2^-24, exact in a float.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

uint16_t FloatToF16(float value) noexcept {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the result, in units of 2^-24, in the low
    // mantissa bits, rounded by the addition itself.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}

void BF16ToFloat(const uint16_t* from, float* to, size_t n) noexcept {
  ConvertArray(from, to, n, [](uint16_t v) { return BF16ToFloat(v); });
}
void FloatToBF16(const float* from, uint16_t* to, size_t n) noexcept {
  ConvertArray(from, to, n, [](float v) { return FloatToBF16(v); });
}
void F16ToFloat(const uint16_t* from, float* to, size_t n) noexcept {
  ConvertArray(from, to, n, [](uint16_t v) { return F16ToFloat(v); });
}
void FloatToF16(const float* from, uint16_t* to, size_t n) noexcept {
  ConvertArray(from, to, n, [](float v) { return FloatToF16(v); });
}

}  // namespace flatquant
