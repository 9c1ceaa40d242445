#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "flatquant/base/error.h"

namespace flatquant::cuda {

// Calls run(std::integral_constant) with a head's size. Kernels hold a head's vector in
// registers, so each size is an instantiation; these two cover the published models.
template <typename Run>
void ForHeadDim(int64_t head_dim, const Run& run) {
  if (head_dim == 64) {
    run(std::integral_constant<int, 64>());
  } else if (head_dim == 128) {
    run(std::integral_constant<int, 128>());
  } else {
    throw Error("cuda.unsupported_head_dim", "attention",
                "head_dim is " + std::to_string(head_dim) + "; the CUDA kernels know 64 and 128",
                "run this model on the CPU");
  }
}

}  // namespace flatquant::cuda
