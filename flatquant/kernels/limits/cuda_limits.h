#pragma once

namespace flatquant {

// What the current GPU can do at best. 0 where it is not known: integers are measured on
// sm_90, 16-bit floats where cuBLASLt is found.
struct CudaLimits {
  double copy_bytes_per_s = 0;  // bytes read and written by a copy that no cache holds
  double int8_ops_per_s = 0;    // wgmma on operands like the GEMM's: nibbles in the
                                // upper half of a byte, small codes
  double bf16_flops_per_s = 0;  // cuBLASLt, 8192 x 8192 x 8192
};

// Medians; together below a second. Allocates 4 GB of GPU memory and frees it.
// Errors: cuda.failed.
CudaLimits MeasureCudaLimits();

}  // namespace flatquant
