// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/float_rows.h"

namespace flatquant {

extern const AttentionKernel kAttentionX86Avx512;
const AttentionKernel kAttentionX86Avx512 = {TokenSlice, RunManyRows, RunFewRows};

}  // namespace flatquant
