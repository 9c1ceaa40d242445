#pragma once

// The CUDA runtime's stream handle without its headers, so that contracts can be
// included by files that are not compiled for CUDA.
struct CUstream_st;

namespace flatquant {

using CudaStream = CUstream_st*;  // the same type as cudaStream_t

}  // namespace flatquant
