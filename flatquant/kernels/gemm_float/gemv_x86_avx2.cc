#include "flatquant/kernels/gemm_float/gemv_rows.h"

namespace flatquant {

extern const GemvKernel kGemvX86Avx2;
const GemvKernel kGemvX86Avx2 = {ArrangedBytes, Arrange, Run};

}  // namespace flatquant
