#include "flatquant/kernels/kron_quantize/quantize_lanes.h"
#include "flatquant/kernels/kron_quantize/transform_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx512;
extern const SwigluKernel kSwigluX86Avx512;

extern const KronQuantizeKernel kKronQuantizeX86Avx512;
const KronQuantizeKernel kKronQuantizeX86Avx512 = {.reads_tiles = false,
                                                   .rms_norm = &kRmsNormX86Avx512,
                                                   .swiglu = &kSwigluX86Avx512,
                                                   .transform = TransformLanes,
                                                   .quantize = QuantizeLanes};

}  // namespace flatquant
