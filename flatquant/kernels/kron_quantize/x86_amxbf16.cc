#include "flatquant/kernels/kron_quantize/quantize_lanes.h"
#include "flatquant/kernels/kron_quantize/tile_transform.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormX86Avx512;
extern const SwigluKernel kSwigluX86Avx512;

extern const KronQuantizeKernel kKronQuantizeX86AmxBf16;
const KronQuantizeKernel kKronQuantizeX86AmxBf16 = {.reads_tiles = true,
                                                    .rms_norm = &kRmsNormX86Avx512,
                                                    .swiglu = &kSwigluX86Avx512,
                                                    .take_unit = AmxTiles::Configure,
                                                    .release_unit = AmxTiles::Release,
                                                    .transform = TransformTiles<ConfiguredAmxTiles>,
                                                    .quantize = QuantizeLanes};

}  // namespace flatquant
