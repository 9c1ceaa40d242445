#include "flatquant/kernels/rms_norm/rms_norm_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx512;
const RmsNormKernel kRmsNormX86Avx512 = {RmsNormRows};

}  // namespace flatquant
