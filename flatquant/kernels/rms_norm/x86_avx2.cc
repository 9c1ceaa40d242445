#include "flatquant/kernels/rms_norm/rms_norm_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx2;
const RmsNormKernel kRmsNormX86Avx2 = {RmsNormRows};

}  // namespace flatquant
