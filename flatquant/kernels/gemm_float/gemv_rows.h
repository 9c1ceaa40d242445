#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/gemm_float/gemv.h"

// The loops of a GEMV over a Format, which says how weights become registers:
//
//   kBytes              of a row that one step takes
//   kVectors            registers of weights that come out of them
//   kElements           weights in a register
//   X                   type of an arranged activation
//   Load(bytes, out)    out [kVectors]
//   Element(v, i)       which weight of the step is element i of register v
//   MulAdd(w, x, sum)   sum + w x, x being the arranged activations at the same place
//   kAhead              bytes ahead of its loads at which a row is asked for; 0: not at all
//
// Formats that need many instructions per byte leave the hardware's prefetchers, which
// stop at each page, too little to go by: asking 2 KB ahead made them a fifth to a half
// faster where it was measured, the others slower.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

typedef int32_t GemvWords __attribute__((vector_size(sizeof(Lanes))));

inline GemvWords LoadGemvWords(const uint8_t* p) {
  GemvWords words;
  std::memcpy(&words, p, sizeof(words));
  return words;
}

inline Lanes ToLanes(GemvWords words) {
#ifdef __AVX512F__
  return _mm512_cvtepi32_ps(std::bit_cast<__m512i>(words));
#else
  return _mm256_cvtepi32_ps(std::bit_cast<__m256i>(words));
#endif
}

// What formats that multiply floats share.
struct FloatMath {
  using X = float;
  using Register = Lanes;
  static constexpr int64_t kElements = kLanes;
  static constexpr int64_t kAhead = 0;
  static Lanes MulAdd(Lanes w, const float* x, Lanes sum) {
    return flatquant::MulAdd(w, LoadLanes(x), sum);
  }
};

struct F32Format : FloatMath {
  static constexpr int64_t kBytes = kLanes * 4;
  static constexpr int kVectors = 1;
  static void Load(const uint8_t* p, Lanes* w) { w[0] = std::bit_cast<Lanes>(LoadGemvWords(p)); }
  static int64_t Element(int64_t, int64_t i) { return i; }
};

struct F16Format : FloatMath {
  static constexpr int64_t kBytes = kLanes * 2;
  static constexpr int kVectors = 1;
  static void Load(const uint8_t* p, Lanes* w) {
#ifdef __AVX512F__
    w[0] = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
    w[0] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  }
  static int64_t Element(int64_t, int64_t i) { return i; }
};

// Two in each word.
struct BF16Format : FloatMath {
  static constexpr int64_t kBytes = kLanes * 4;
  static constexpr int kVectors = 2;
  static void Load(const uint8_t* p, Lanes* w) {
    const GemvWords words = LoadGemvWords(p);
    w[0] = std::bit_cast<Lanes>(words << 16);
    w[1] = std::bit_cast<Lanes>(words & static_cast<int32_t>(0xffff0000));
  }
  static int64_t Element(int64_t v, int64_t i) { return 2 * i + v; }
};

struct Int8Format : FloatMath {
  static constexpr int64_t kAhead = 2048;
  static constexpr int64_t kBytes = kLanes;
  static constexpr int kVectors = 1;
  static void Load(const uint8_t* p, Lanes* w) {
#ifdef __AVX512F__
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    w[0] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#else
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    w[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#endif
  }
  static int64_t Element(int64_t, int64_t i) { return i; }
};

// Eight in each word.
struct NibbleFormat : FloatMath {
  static constexpr int64_t kAhead = 2048;
  static constexpr int64_t kBytes = kLanes * 4;
  static constexpr int kVectors = 8;
  static void Load(const uint8_t* p, Lanes* w) {
    const GemvWords words = LoadGemvWords(p);
#ifdef __AVX512F__
    // The permutation looks at an index's low four bits: it widens and converts.
    const __m512 values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    for (int v = 0; v < 8; ++v) {
      w[v] = _mm512_permutexvar_ps(std::bit_cast<__m512i>(words >> 4 * v), values);
    }
#else
    for (int v = 0; v < 8; ++v) w[v] = ToLanes(words << (28 - 4 * v) >> 28);
#endif
  }
  static int64_t Element(int64_t v, int64_t i) { return 8 * i + v; }
};

template <typename Format>
constexpr int64_t StepElements() {
  return Format::kVectors * Format::kElements;
}

// One token reads a row at a time: a task's rows are then a single stretch of memory,
// which arrives almost twice as fast as four stretches side by side. Four partial sums
// hide the latency of their additions. Several tokens are bound by arithmetic instead:
// four rows share the loads of four tokens (two with AVX2's 16 registers).
inline constexpr int kBlockRows = 4;
inline constexpr int kBlockTokens = kLanes == 16 ? 4 : 2;

// y of kRows rows and kTokens tokens, with kParts partial sums each.
template <typename Format, int kRows, int kTokens, int kParts>
void GemvTile(const GemvArgs& args, int64_t i, int64_t m) {
  using Register = typename Format::Register;
  using X = typename Format::X;
  constexpr int64_t kXBytes = StepElements<Format>() * static_cast<int64_t>(sizeof(X));
  constexpr int kSteps = Format::kVectors < kParts ? kParts / Format::kVectors : 1;
  const FloatWeights& weights = *args.weights;
  const auto row_bytes = static_cast<int64_t>(weights.row_bytes());
  const uint8_t* row = weights.row(args.row_begin + i);
  const auto* x = static_cast<const uint8_t*>(args.x) + m * args.x_stride;
  Lanes sum[kRows][kParts][kTokens];
  for (int r = 0; r < kRows; ++r) {
    for (int part = 0; part < kParts; ++part) {
      for (int t = 0; t < kTokens; ++t) sum[r][part][t] = SetLanes(0);
    }
  }
  // kCount steps of rows `stride` bytes apart.
  const auto add = [&]<int kCount>(const uint8_t* w_step, int64_t stride, const uint8_t* x_step) {
    for (int r = 0; r < kRows; ++r) {
      for (int u = 0; u < kCount; ++u) {
        Register w[Format::kVectors];
        Format::Load(w_step + r * stride + u * Format::kBytes, w);
        for (int v = 0; v < Format::kVectors; ++v) {
          const int part = (u * Format::kVectors + v) % kParts;
          for (int t = 0; t < kTokens; ++t) {
            const auto* x_t = reinterpret_cast<const X*>(x_step + u * kXBytes + t * args.x_stride);
            sum[r][part][t] = Format::MulAdd(w[v], x_t + v * Format::kElements, sum[r][part][t]);
          }
        }
      }
    }
  };
  int64_t byte = 0;
  for (; byte + kSteps * Format::kBytes <= row_bytes; byte += kSteps * Format::kBytes) {
    for (int r = 0; r < kRows && Format::kAhead > 0; ++r) {
      for (int64_t line = 0; line < kSteps * Format::kBytes; line += 64) {
        const uint8_t* next = row + r * row_bytes + byte + line + Format::kAhead;
        _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      }
    }
    add.template operator()<kSteps>(row + byte, row_bytes, x);
    x += kSteps * kXBytes;
  }
  for (; byte < row_bytes; byte += Format::kBytes) {
    alignas(64) uint8_t rest[kRows][Format::kBytes] = {};
    const auto size = static_cast<size_t>(std::min(Format::kBytes, row_bytes - byte));
    for (int r = 0; r < kRows; ++r) std::memcpy(rest[r], row + r * row_bytes + byte, size);
    add.template operator()<1>(rest[0], Format::kBytes, x);
    x += kXBytes;
  }
  for (int r = 0; r < kRows; ++r) {
    const auto index = static_cast<size_t>(args.row_begin + i + r);
    const float scale = weights.scale.size() > 0 ? weights.scale[index] : 1.0f;
    const float bias = weights.bias.size() > 0 ? weights.bias[index] : 0.0f;
    for (int t = 0; t < kTokens; ++t) {
      Lanes total = sum[r][0][t];
      for (int part = 1; part < kParts; ++part) total = total + sum[r][part][t];
      args.y[(m + t) * args.y_stride + i + r] = SumOfLanes(total) * scale + bias;
    }
  }
}

template <typename Format, int kRows>
void GemvTokens(const GemvArgs& args, int64_t i) {
  int64_t m = 0;
  for (; m + kBlockTokens <= args.tokens; m += kBlockTokens) {
    GemvTile<Format, kRows, kBlockTokens, 1>(args, i, m);
  }
  for (; m < args.tokens; ++m) GemvTile<Format, kRows, 1, kRows == 1 ? 4 : 1>(args, i, m);
}

template <typename Format>
void GemvRows(const GemvArgs& args, int64_t begin, int64_t end) {
  int64_t i = begin;
  if (args.tokens > 1) {
    for (; i + kBlockRows <= end; i += kBlockRows) GemvTokens<Format, kBlockRows>(args, i);
  }
  for (; i < end; ++i) GemvTokens<Format, 1>(args, i);
}

template <typename Format>
int64_t GemvSteps(const FloatWeights& weights) {
  return (static_cast<int64_t>(weights.row_bytes()) + Format::kBytes - 1) / Format::kBytes;
}

template <typename Format>
int64_t GemvArrangedBytes(const FloatWeights& weights) {
  return GemvSteps<Format>(weights) * StepElements<Format>() *
         static_cast<int64_t>(sizeof(typename Format::X));
}

// convert(float) gives Format::X.
template <typename Format, typename Convert>
void GemvArrange(const FloatWeights& weights, const float* x, void* arranged, Convert convert) {
  auto* out = static_cast<typename Format::X*>(arranged);
  for (int64_t s = 0; s < GemvSteps<Format>(weights); ++s) {
    for (int64_t v = 0; v < Format::kVectors; ++v) {
      for (int64_t i = 0; i < Format::kElements; ++i) {
        const int64_t c = s * StepElements<Format>() + Format::Element(v, i);
        *out++ = convert(c < weights.cols ? x[c] : 0.0f);
      }
    }
  }
}

// Calls run<Format>() with the format of the weights' storage.
template <typename Run>
auto WithStorage(FloatWeights::Storage storage, const Run& run) {
  switch (storage) {
    case FloatWeights::Storage::kF32:
      return run.template operator()<F32Format>();
    case FloatWeights::Storage::kF16:
      return run.template operator()<F16Format>();
    case FloatWeights::Storage::kBF16:
      return run.template operator()<BF16Format>();
    case FloatWeights::Storage::kInt8:
      return run.template operator()<Int8Format>();
    case FloatWeights::Storage::kNibble:
      break;
  }
  return run.template operator()<NibbleFormat>();
}

// bfloat16 and back, as FloatToBF16 rounds.
inline float RoundToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
  const uint32_t quiet_nan = (bits | 0x00400000u) & 0xffff0000u;
  return std::bit_cast<float>(x != x ? quiet_nan : rounded);
}

inline int64_t ArrangedBytes(const FloatWeights& weights) noexcept {
  return WithStorage(weights.storage,
                     [&]<typename Format>() { return GemvArrangedBytes<Format>(weights); });
}

inline void Arrange(const FloatWeights& weights, const float* x, void* arranged) noexcept {
  WithStorage(weights.storage, [&]<typename Format>() {
    if (weights.math == GemmFloatMath::kBF16) {
      GemvArrange<Format>(weights, x, arranged, RoundToBF16);
    } else {
      GemvArrange<Format>(weights, x, arranged, [](float value) { return value; });
    }
  });
}

inline void Run(const GemvArgs& args, int64_t begin, int64_t end) noexcept {
  WithStorage(args.weights->storage,
              [&]<typename Format>() { GemvRows<Format>(args, begin, end); });
}

}  // namespace
}  // namespace flatquant
