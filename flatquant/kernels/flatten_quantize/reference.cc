#include <algorithm>
#include <cmath>
#include <cstring>

#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"

namespace flatquant {

extern const RmsNormKernel kRmsNormReference;
extern const SwigluKernel kSwigluReference;

namespace {

// Beyond 16 bits no piece differs, and quotients stay in float's range. The lower
// bound first: in this order NaN becomes a number.
int32_t Code(float x, float scale) {
  const float limit = 65536.0f * scale;
  return static_cast<int32_t>(std::nearbyint(std::min(std::max(-limit, x), limit) / scale));
}

int8_t Piece(int32_t q, int32_t offset, int32_t top) {
  const int32_t size = std::clamp(std::abs(q) - offset, 0, top);
  return static_cast<int8_t>(q < 0 ? -size : size);
}

void Quantize(const Flattening& flattening, const float* x, const float* gathered, int8_t* codes,
              int64_t code_stride) noexcept {
  const int32_t top = (1 << (flattening.bits - 1)) - 1;
  const int64_t width = flattening.width;
  for (int64_t c = 0; c < width; ++c) codes[c] = Piece(Code(x[c], flattening.scale), 0, top);
  for (int64_t i = 0; i < flattening.extra(); ++i) {
    const auto offset = static_cast<int32_t>(flattening.offset[static_cast<size_t>(i)]);
    codes[width + i] = Piece(Code(gathered[i], flattening.scale), offset, top);
  }
  std::memset(codes + flattening.columns(), 0,
              static_cast<size_t>(code_stride - flattening.columns()));
}

}  // namespace

extern const FlattenQuantizeKernel kFlattenQuantizeReference;
const FlattenQuantizeKernel kFlattenQuantizeReference = {
    .rms_norm = &kRmsNormReference, .swiglu = &kSwigluReference, .quantize = Quantize};

}  // namespace flatquant
