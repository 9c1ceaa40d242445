#pragma once

#include <type_traits>
#include <utility>

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Calls body(0), ..., body(n - 1) with integral constants, without a loop: an array
// of registers that is indexed by them stays in registers, while GCC leaves in memory
// what it meets in a loop that it unrolls late.
template <int n, typename Body>
[[gnu::always_inline]] inline void Unroll(const Body& body) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, i>{}), ...);
  }
  (std::make_integer_sequence<int, n>{});
}

}  // namespace
}  // namespace flatquant
