#include "flatquant/kernels/flatten_quantize/flatten_quantize_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx512;
extern const SwigluKernel kSwigluX86Avx512;

extern const FlattenQuantizeKernel kFlattenQuantizeX86Avx512;
const FlattenQuantizeKernel kFlattenQuantizeX86Avx512 = {
    .rms_norm = &kRmsNormX86Avx512, .swiglu = &kSwigluX86Avx512, .quantize = FlattenQuantizeLanes};

}  // namespace flatquant
