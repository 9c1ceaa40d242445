#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/float_rows.h"

namespace flatquant {

extern const AttentionKernel kAttentionX86Avx2;
const AttentionKernel kAttentionX86Avx2 = {TokenSlice, RunManyRows, RunFewRows};

}  // namespace flatquant
