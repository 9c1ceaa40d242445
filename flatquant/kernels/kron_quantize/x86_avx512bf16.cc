// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/kron_quantize/pair_transform.h"
#include "flatquant/kernels/kron_quantize/quantize_lanes.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx512;
extern const SwigluKernel kSwigluX86Avx512;

extern const KronQuantizeKernel kKronQuantizeX86Avx512Bf16;
const KronQuantizeKernel kKronQuantizeX86Avx512Bf16 = {.reads_tiles = true,
                                                       .rms_norm = &kRmsNormX86Avx512,
                                                       .swiglu = &kSwigluX86Avx512,
                                                       .transform = TransformPairs,
                                                       .quantize = QuantizeLanes};

}  // namespace flatquant
