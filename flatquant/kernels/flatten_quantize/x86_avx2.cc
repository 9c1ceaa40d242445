#include "flatquant/kernels/flatten_quantize/flatten_quantize_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx2;
extern const SwigluKernel kSwigluX86Avx2;

extern const FlattenQuantizeKernel kFlattenQuantizeX86Avx2;
const FlattenQuantizeKernel kFlattenQuantizeX86Avx2 = {
    .rms_norm = &kRmsNormX86Avx2, .swiglu = &kSwigluX86Avx2, .quantize = FlattenQuantizeLanes};

}  // namespace flatquant
