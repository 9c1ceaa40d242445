#pragma once

#include "flatquant/base/error.h"
#include "flatquant/kernels/attention/cuda_attention.h"

namespace flatquant {

// What every call asks of its planes.
inline void CheckCudaAttention(const CudaAttentionArgs& args) {
  FLATQUANT_CHECK(args.scale > 0);
  FLATQUANT_CHECK(args.k.heads == args.v.heads && args.heads % args.k.heads == 0);
  FLATQUANT_CHECK(args.k.head_dim == args.v.head_dim && args.k.capacity == args.v.capacity);
  // Decoding copies blocks of 16 or 32 positions, scales and zero points with them.
  FLATQUANT_CHECK(args.k.capacity % 32 == 0);
  FLATQUANT_CHECK((args.k.packed() || args.k.bits == 16) && (args.v.packed() || args.v.bits == 16));
}

}  // namespace flatquant
