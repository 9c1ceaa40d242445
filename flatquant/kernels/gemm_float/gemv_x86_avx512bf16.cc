// Where both sides are bfloat16, VDPBF16PS multiplies pairs as they are; the other
// combinations as with AVX-512.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/gemm_float/gemv_rows.h"

namespace flatquant {
namespace {

struct PairMath {
  using X = uint16_t;
  using Register = __m512i;
  static constexpr int64_t kElements = 32;
  // Intel's prefetchers stop at a page's end, at every row or two: without this generation with
  // 16-bit weights had 69% of the bandwidth there, with it 96 to 99%. 1024 and 8192 were less.
  static constexpr int64_t kAhead = 2048;
  static Lanes MulAdd(__m512i w, const uint16_t* x, Lanes sum) {
    return _mm512_dpbf16_ps(sum, std::bit_cast<__m512bh>(w),
                            std::bit_cast<__m512bh>(_mm512_loadu_si512(x)));
  }
};

struct BF16Pairs : PairMath {
  static constexpr int64_t kBytes = 64;
  static constexpr int kVectors = 1;
  static void Load(const uint8_t* p, __m512i* w) { w[0] = _mm512_loadu_si512(p); }
  static int64_t Element(int64_t, int64_t i) { return i; }
};

// Four nibbles in each 16 bits. The permutation looks at an index's low five bits; the
// fifth belongs to the next nibble, so the table has each value twice.
struct NibblePairs : PairMath {
  static constexpr int64_t kBytes = 64;
  static constexpr int kVectors = 4;
  static void Load(const uint8_t* p, __m512i* w) {
    alignas(64) static constexpr uint16_t kValues[32] = {
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   // 0 .. 7
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,   // -8 .. -1
        0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   //
        0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};  //
    const __m512i values = _mm512_load_si512(kValues);
    const __m512i nibbles = _mm512_loadu_si512(p);
    w[0] = _mm512_permutexvar_epi16(nibbles, values);
    w[1] = _mm512_permutexvar_epi16(_mm512_srli_epi16(nibbles, 4), values);
    w[2] = _mm512_permutexvar_epi16(_mm512_srli_epi16(nibbles, 8), values);
    w[3] = _mm512_permutexvar_epi16(_mm512_srli_epi16(nibbles, 12), values);
  }
  static int64_t Element(int64_t v, int64_t i) { return 4 * i + v; }
};

// Calls run<Format>() if pairs can be multiplied.
template <typename Run>
bool WithPairs(const FloatWeights& weights, const Run& run) {
  if (weights.math != GemmFloatMath::kBF16) return false;
  if (weights.storage == FloatWeights::Storage::kBF16) {
    run.template operator()<BF16Pairs>();
    return true;
  }
  if (weights.storage == FloatWeights::Storage::kNibble) {
    run.template operator()<NibblePairs>();
    return true;
  }
  return false;
}

int64_t PairArrangedBytes(const FloatWeights& weights) noexcept {
  int64_t bytes = 0;
  if (WithPairs(weights, [&]<typename Format>() { bytes = GemvArrangedBytes<Format>(weights); })) {
    return bytes;
  }
  return ArrangedBytes(weights);
}

void PairArrange(const FloatWeights& weights, const float* x, void* arranged) noexcept {
  const auto convert = [](float value) {
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(RoundToBF16(value)) >> 16);
  };
  if (!WithPairs(weights,
                 [&]<typename Format>() { GemvArrange<Format>(weights, x, arranged, convert); })) {
    Arrange(weights, x, arranged);
  }
}

void PairRun(const GemvArgs& args, int64_t begin, int64_t end) noexcept {
  if (!WithPairs(*args.weights, [&]<typename Format>() { GemvRows<Format>(args, begin, end); })) {
    Run(args, begin, end);
  }
}

}  // namespace

extern const GemvKernel kGemvX86Avx512Bf16;
const GemvKernel kGemvX86Avx512Bf16 = {PairArrangedBytes, PairArrange, PairRun};

}  // namespace flatquant
