#include "flatquant/base/half.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {
namespace {

float ToFloat(float value) { return value; }
float ToFloat(uint16_t bits) { return BF16ToFloat(bits); }

// Sixteen partial sums per element, so that the compiler can vectorise.
template <typename Element>
void Multiply(int64_t m, int64_t n, int64_t k, const Element* a, const Element* b, float* c,
              int64_t c_stride) noexcept {
  constexpr int64_t kLanes = 16;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const Element* a_row = a + i * k;
      const Element* b_row = b + j * k;
      float lane[kLanes] = {};
      int64_t p = 0;
      for (; p + kLanes <= k; p += kLanes) {
        for (int64_t l = 0; l < kLanes; ++l)
          lane[l] += ToFloat(a_row[p + l]) * ToFloat(b_row[p + l]);
      }
      for (; p < k; ++p) lane[0] += ToFloat(a_row[p]) * ToFloat(b_row[p]);
      float sum = 0;
      for (int64_t l = 0; l < kLanes; ++l) sum += lane[l];
      c[i * c_stride + j] = sum;
    }
  }
}

}  // namespace

extern const GemmFloatKernel kGemmFloatReference;
const GemmFloatKernel kGemmFloatReference = {Multiply<float>, Multiply<uint16_t>};

}  // namespace flatquant
