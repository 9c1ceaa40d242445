#include "flatquant/kernels/swiglu/swiglu_lanes.h"

namespace flatquant {

extern const SwigluKernel kSwigluX86Avx512;
const SwigluKernel kSwigluX86Avx512 = {SwigluRows};

}  // namespace flatquant
