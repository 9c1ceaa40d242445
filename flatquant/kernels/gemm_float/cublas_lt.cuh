#pragma once

#include <cublasLt.h>

namespace flatquant {

// cuBLASLt's functions, found when they are first needed: the library has hundreds of
// megabytes, and only products of 16-bit floats on a GPU need it, so that a binary built
// with CUDA starts where there is none.
struct CublasLtFunctions {
#define FLATQUANT_CUBLAS_LT(name) decltype(&::name) name = nullptr;
#include "flatquant/kernels/gemm_float/cublas_lt_functions.inc"
#undef FLATQUANT_CUBLAS_LT
};

// Errors: cuda.no_cublas.
const CublasLtFunctions& CublasLt();

}  // namespace flatquant
