#include "flatquant/kernels/swiglu/swiglu_lanes.h"

namespace flatquant {

extern const SwigluKernel kSwigluX86Avx2;
const SwigluKernel kSwigluX86Avx2 = {SwigluRows};

}  // namespace flatquant
