#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "flatquant/base/half.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/float_tile.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/store_heads/store_heads.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct HeadsTag {};
struct TransformedTag {};
struct CodesTag {};

// Calls step(i, load, store) for each register of n elements; load and store take the
// part of a register that there is.
template <typename Step>
inline void ForEachRegister(int64_t n, const Step& step) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    step(i, LoadLanes, StoreLanes);
  }
  if (i == n) return;
  const int64_t rest = n - i;
  step(
      i, [&](const float* p) { return LoadFirst(p, rest); },
      [&](float* p, Lanes v) { StoreFirst(p, v, rest); });
}

inline float NormFactor(const StoreHeadsArgs& args, const float* x) {
  Lanes squares = SetLanes(0);
  ForEachRegister(args.head_dim, [&](int64_t i, const auto& load, const auto&) {
    const Lanes v = load(x + i);
    squares = MulAdd(v, v, squares);
  });
  const float mean = SumOfLanes(squares) / static_cast<float>(args.head_dim);
  return 1.0f / __builtin_sqrtf(mean + args.norm_eps);
}

// y = the norm and rotation of one token's head x.
inline void NormAndRotate(const StoreHeadsArgs& args, int64_t token, const float* x, float* y) {
  const bool has_norm = args.norm != nullptr;
  const Lanes factor = SetLanes(has_norm ? NormFactor(args, x) : 1.0f);
  const auto normed = [&](int64_t i, const auto& load) {
    const Lanes v = load(x + i);
    return has_norm ? v * (factor * load(args.norm + i)) : v;
  };
  if (args.cos == nullptr) {
    ForEachRegister(args.head_dim, [&](int64_t i, const auto& load, const auto& store) {
      store(y + i, normed(i, load));
    });
    return;
  }
  const int64_t half = args.head_dim / 2;
  ForEachRegister(half, [&](int64_t i, const auto& load, const auto& store) {
    const Lanes cos = load(args.cos + token * half + i);
    const Lanes sin = load(args.sin + token * half + i);
    const Lanes a = normed(i, load);
    const Lanes b = normed(half + i, load);
    store(y + i, MulSub(b, sin, a * cos));
    store(y + half + i, MulAdd(a, sin, b * cos));
  });
}

inline void StoreCodes(uint8_t* p, Lanes v) {
#ifdef __AVX512F__
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
#else
  const __m256i words = _mm256_cvtps_epi32(v);
  const __m128i shorts =
      _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(shorts, shorts));
#endif
}

// QuantizeKv's formula for one vector; single float operations, as there.
inline void Append(const StoreHeadsArgs& args, int64_t head, int64_t position, const float* x) {
  const KvPlane& plane = args.plane;
  const int64_t n = plane.head_dim;
  const auto index = static_cast<size_t>(head * plane.capacity + position);
  uint8_t* out = plane.data + index * KvRowBytes(plane.format, n);
  if (plane.format == KvFormat::kF32) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  if (plane.format == KvFormat::kBF16) {
    FloatToBF16(x, reinterpret_cast<uint16_t*>(out), static_cast<size_t>(n));
    return;
  }
  Lanes smallest = SetLanes(0);
  Lanes largest = SetLanes(0);
  ForEachRegister(n, [&](int64_t i, const auto& load, const auto&) {
    const Lanes v = load(x + i);
    smallest = MinLanes(v, smallest);
    largest = MaxLanes(v, largest);
  });
  float lo = SmallestLane(smallest) * args.clip_min;
  float hi = LargestLane(largest) * args.clip_max;
  __asm__("" : "+x"(lo), "+x"(hi));  // each product is rounded: no fusing with what follows
  const float top = static_cast<float>((1 << plane.bits) - 1);
  float scale = (hi - lo) / top;
  float zero = 0;
  if (scale > 0) {
    zero = __builtin_nearbyintf(-lo / scale);
  } else {
    scale = 1.0f;
  }
  plane.scale[index] = scale;
  plane.zero[index] = static_cast<uint8_t>(zero);
  const int64_t padded = (n + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes;
  uint8_t* codes = ThreadScratch<CodesTag, uint8_t>(static_cast<size_t>(padded));
  const Lanes scales = SetLanes(scale);
  const Lanes zeros = SetLanes(zero);
  ForEachRegister(n, [&](int64_t i, const auto& load, const auto&) {
    const Lanes q = RoundLanes(load(x + i) / scales) + zeros;
    // In this order NaN gives 0.
    StoreCodes(codes + i, MinLanes(MaxLanes(q, SetLanes(0)), SetLanes(top)));
  });
  if (plane.format == KvFormat::kByte) {
    std::memcpy(out, codes, static_cast<size_t>(n));
    return;
  }
  if (n % 2 != 0) codes[n] = 0;
  for (int64_t i = 0; i < (n + 1) / 2; ++i) {
    uint16_t pair;
    std::memcpy(&pair, codes + 2 * i, sizeof(pair));
    out[i] = static_cast<uint8_t>(pair | pair >> 4);
  }
}

inline void StoreHeadsRows(const StoreHeadsArgs& args, int64_t token_begin,
                           int64_t token_end) noexcept {
  const int64_t n = args.head_dim;
  const int64_t rows = (token_end - token_begin) * args.heads;
  const int64_t first = token_begin * args.heads;
  const float* result = args.x + first * n;
  int64_t stride = n;
  if (args.norm != nullptr || args.cos != nullptr) {
    float* turned = ThreadScratch<HeadsTag, float>(static_cast<size_t>(rows * n));
    for (int64_t r = 0; r < rows; ++r) {
      NormAndRotate(args, token_begin + r / args.heads, result + r * n, turned + r * n);
    }
    result = turned;
  }
  if (args.transform != nullptr) {
    stride = args.transform->right_stride;
    float* product = ThreadScratch<TransformedTag, float>(static_cast<size_t>(rows * stride));
    MultiplySmall(rows, stride, n, {result, n, 1}, args.transform->right.data(), stride, product,
                  stride, false);
    result = product;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = result + r * stride;
    if (args.y != nullptr) {
      std::memcpy(args.y + (first + r) * n, row, static_cast<size_t>(n) * sizeof(float));
    } else {
      Append(args, r % args.heads, args.first_position + token_begin + r / args.heads, row);
    }
  }
}

}  // namespace
}  // namespace flatquant
