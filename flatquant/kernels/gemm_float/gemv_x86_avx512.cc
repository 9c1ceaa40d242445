// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/gemm_float/gemv_rows.h"

namespace flatquant {

extern const GemvKernel kGemvX86Avx512;
const GemvKernel kGemvX86Avx512 = {ArrangedBytes, Arrange, Run};

}  // namespace flatquant
