#include "flatquant/kernels/kron_quantize/quantize_lanes.h"
#include "flatquant/kernels/kron_quantize/transform_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx2;
extern const SwigluKernel kSwigluX86Avx2;

extern const KronQuantizeKernel kKronQuantizeX86Avx2;
const KronQuantizeKernel kKronQuantizeX86Avx2 = {.reads_tiles = false,
                                                 .rms_norm = &kRmsNormX86Avx2,
                                                 .swiglu = &kSwigluX86Avx2,
                                                 .transform = TransformLanes,
                                                 .quantize = QuantizeLanes};

}  // namespace flatquant
