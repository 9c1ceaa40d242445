#pragma once

#include <immintrin.h>

#include <cstdint>

// VPDPBUSD: products of bytes, of which one is unsigned, four to a lane.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// sum + digits . codes in each lane. As assembly, because GCC 12 copies the sums of the
// intrinsic to and fro, and through memory.
template <bool kIsSigned>
[[gnu::always_inline]] inline __m512i AddProducts(__m512i sum, __m512i digits, __m512i codes) {
  if constexpr (kIsSigned) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(codes));
  } else {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
  }
  return sum;
}

// The same with unsigned codes and, in each lane, the four signed digits at `digits` + kOffset.
// The offset belongs to the instruction: of one address per instruction GCC makes as many
// loop invariants, and a load of each.
template <int kOffset>
[[gnu::always_inline]] inline __m512i AddProductsOfFour(__m512i sum, const uint8_t* digits,
                                                        __m512i codes) {
  __asm__("vpdpbusd %c3(%2)%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(codes), "r"(digits), "i"(kOffset),
            "m"(*reinterpret_cast<const uint8_t(*)[kOffset + 4]>(digits)));
  return sum;
}

}  // namespace
}  // namespace flatquant
