#pragma once

#include <cstdint>

#include "flatquant/kernels/cuda/stream.h"

namespace flatquant::cuda {

// The INT8 wgmma ceiling: every multiprocessor multiplies random operands that already
// are in registers (A) and shared memory (B), as the GEMM does and without its loads.
// `products` of m64n256k32 per warpgroup, two warpgroups per multiprocessor. a_mask and
// b_shift shape the random operands: which bits of A may be set, how far B's 4-bit
// values are shifted. `sink`: an int32, written only to keep the work.
void LaunchInt8Peak(int products, uint32_t a_mask, int b_shift, int32_t* sink, CudaStream stream);

}  // namespace flatquant::cuda
