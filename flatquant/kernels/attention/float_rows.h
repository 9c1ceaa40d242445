#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/attention/few_rows.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/unroll.h"

// Few rows in float: K and V are widened in registers, straight from the cache.
//
// A register is filled with 32-bit words of a cached vector; each word holds E
// elements (1 float, 2 bfloat16, 4 bytes, 8 nibbles), which shifts and masks turn
// into E registers of floats. So register v of group g holds elements
// (g kLanes + lane) E + v, and queries and outputs are kept in that order.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

typedef int32_t Words __attribute__((vector_size(sizeof(Lanes))));

constexpr int64_t WordElements(KvFormat format) {
  switch (format) {
    case KvFormat::kF32:
      return 1;
    case KvFormat::kBF16:
      return 2;
    case KvFormat::kByte:
      return 4;
    case KvFormat::kNibble:
      return 8;
  }
  return 1;
}

inline Words LoadWords(const uint8_t* p) {
  Words words;
  std::memcpy(&words, p, sizeof(words));
  return words;
}

// Elements `v` of the words, less the zero point of an integer format.
template <KvFormat kFormat>
inline Lanes Widen(Words words, int v, int32_t zero) {
  if constexpr (kFormat == KvFormat::kF32) return std::bit_cast<Lanes>(words);
  if constexpr (kFormat == KvFormat::kBF16) {
    return std::bit_cast<Lanes>(v == 0 ? words << 16 : words & static_cast<int32_t>(0xffff0000));
  }
  if constexpr (kFormat == KvFormat::kByte) words = (words >> 8 * v) & 255;
  if constexpr (kFormat == KvFormat::kNibble) words = (words >> 4 * v) & 15;
  words -= zero;
#ifdef __AVX512F__  // GCC 12 converts 16 lanes one by one
  return _mm512_cvtepi32_ps(std::bit_cast<__m512i>(words));
#else
  return __builtin_convertvector(words, Lanes);
#endif
}

// A KV head's vectors from position `begin` on, as words.
template <KvFormat kFormat>
class WordRows {
 public:
  static constexpr int64_t kElements = WordElements(kFormat);
  static constexpr int64_t kGroupBytes = kLanes * 4;
  static constexpr bool kIsInteger = kFormat == KvFormat::kByte || kFormat == KvFormat::kNibble;

  WordRows(const KvPlane& plane, int64_t head, int64_t begin)
      : row_bytes_(static_cast<int64_t>(KvRowBytes(plane.format, plane.head_dim))),
        groups_((row_bytes_ + kGroupBytes - 1) / kGroupBytes),
        data_(plane.data + (head * plane.capacity + begin) * row_bytes_),
        zero_(kIsInteger ? plane.zero + head * plane.capacity + begin : nullptr) {}

  int64_t groups() const { return groups_; }
  int64_t vectors() const { return groups_ * kElements; }
  bool is_whole() const { return row_bytes_ == groups_ * kGroupBytes; }
  const uint8_t* row(int64_t key) const { return data_ + key * row_bytes_; }
  int32_t zero(int64_t key) const { return kIsInteger ? zero_[key] : 0; }
  // The row where whole groups may be read: itself, or its copy in `buffer`.
  const uint8_t* Whole(int64_t key, uint8_t* buffer) const {
    if (is_whole()) return row(key);
    std::memcpy(buffer, row(key), static_cast<size_t>(row_bytes_));
    std::memset(buffer + row_bytes_, 0, static_cast<size_t>(groups_ * kGroupBytes - row_bytes_));
    return buffer;
  }
  // The element in lane `lane` of vector `vector`.
  static int64_t Element(int64_t vector, int64_t lane) {
    return (vector / kElements * kLanes + lane) * kElements + vector % kElements;
  }

 private:
  int64_t row_bytes_;
  int64_t groups_;
  const uint8_t* data_;
  const uint8_t* zero_;
};

#ifdef __AVX512F__

// Lane i of the result: the sum of v[i]'s lanes.
inline Lanes SumEach(const Lanes (&v)[16]) {
  Lanes pair[8];
  for (int i = 0; i < 8; ++i) {
    pair[i] =
        _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]) + _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
  Lanes quad[4];  // in each 128 bits, partial sums of four vectors
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pair[2 * i]);
    const __m512d b = _mm512_castps_pd(pair[2 * i + 1]);
    quad[i] =
        _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)) + _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
  }
  Lanes half[2];
  for (int i = 0; i < 2; ++i) {
    half[i] = _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0x88) +
              _mm512_shuffle_f32x4(quad[2 * i], quad[2 * i + 1], 0xdd);
  }
  return _mm512_shuffle_f32x4(half[0], half[1], 0x88) +
         _mm512_shuffle_f32x4(half[0], half[1], 0xdd);
}

#else

inline Lanes SumEach(const Lanes (&v)[8]) {
  const Lanes low = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const Lanes high = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_permute2f128_ps(low, high, 0x20) + _mm256_permute2f128_ps(low, high, 0x31);
}

#endif

// scores [kRows][key .. key + kLanes / kRows) = query . K, without K's scale.
template <KvFormat kFormat, int kRows>
inline void DotKeys(const WordRows<kFormat>& k, int64_t key, int64_t keys, const float* query,
                    int64_t query_stride, uint8_t* buffer, float* scores) {
  constexpr int kKeys = static_cast<int>(kLanes) / kRows;
  constexpr int kElements = static_cast<int>(WordRows<kFormat>::kElements);
  Lanes sum[kLanes];
  Unroll<kLanes>([&](auto i) { sum[i] = SetLanes(0); });
  const uint8_t* row[kKeys];
  int32_t zero[kKeys];
  Unroll<kKeys>([&](auto j) {
    const int64_t seen = std::min(key + j, keys - 1);  // of the last ones, copies
    row[j] = k.Whole(seen, buffer + j * k.groups() * k.kGroupBytes);
    zero[j] = k.zero(seen);
  });
  for (int64_t g = 0; g < k.groups(); ++g) {
    const float* q_group = query + g * kElements * kLanes;
    Unroll<kKeys>([&](auto j) {
      const Words words = LoadWords(row[j] + g * k.kGroupBytes);
      Prefetch(row[j] + g * k.kGroupBytes);
      Unroll<kElements>([&](auto e) {
        const Lanes x = Widen<kFormat>(words, e, zero[j]);
        const float* q = q_group + e * kLanes;
        Unroll<kRows>([&](auto r) {
          sum[r * kKeys + j] = MulAdd(LoadLanes(q + r * query_stride), x, sum[r * kKeys + j]);
        });
      });
    });
  }
  float dots[kLanes];
  StoreLanes(dots, SumEach(sum));
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(scores + r * kScoreStride + key, dots + r * kKeys, kKeys * sizeof(float));
  }
}

template <KvFormat kFormat>
void ScoreFloats(const AttentionBlock& block, float* query, uint8_t* buffer, float* scores) {
  const AttentionArgs& args = *block.args;
  const WordRows<kFormat> k(args.k, block.kv_head, block.key_begin);
  const int64_t n = args.k.head_dim;
  const int64_t stride = k.vectors() * kLanes;
  const int64_t rows = block.rows();
  const int64_t keys = block.keys();
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = args.q + block.Offset(r);
    for (int64_t v = 0; v < k.vectors(); ++v) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t i = k.Element(v, lane);
        query[r * stride + v * kLanes + lane] = i < n ? q[i] * args.scale : 0.0f;
      }
    }
  }
  // All rows meet 16 keys before the next ones are read.
  for (int64_t key = 0; key < keys; key += 16) {
    const auto dot = [&]<int kRows>(int64_t r) {
      for (int64_t j = key; j < std::min(keys, key + 16); j += kLanes / kRows) {
        DotKeys<kFormat, kRows>(k, j, keys, query + r * stride, stride, buffer,
                                scores + r * kScoreStride);
      }
    };
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) dot.template operator()<4>(r);
    for (; r + 2 <= rows; r += 2) dot.template operator()<2>(r);
    for (; r < rows; ++r) dot.template operator()<1>(r);
  }
  if (!k.kIsInteger) return;
  const float* scale = args.k.scale + block.kv_head * args.k.capacity + block.key_begin;
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * kScoreStride;
    for (int64_t j = 0; j < keys; ++j) row[j] *= scale[j];
  }
}

// out [kRows][kGroups groups] += weights [kRows][begin, end) V, from group `group` on.
template <KvFormat kFormat, int kRows, int kGroups>
inline void AddValues(const WordRows<kFormat>& v, int64_t group, int64_t begin, int64_t end,
                      const float* weights, uint8_t* buffer, float* out, int64_t out_stride) {
  constexpr int kElements = static_cast<int>(WordRows<kFormat>::kElements);
  constexpr int kVectors = kGroups * kElements;
  Lanes sum[kRows][kVectors];
  Unroll<kRows>([&](auto r) {
    Unroll<kVectors>([&](auto i) { sum[r][i] = LoadLanes(out + r * out_stride + i * kLanes); });
  });
  for (int64_t j = begin; j < end; ++j) {
    const uint8_t* row = v.Whole(j, buffer) + group * v.kGroupBytes;
    const int32_t zero = v.zero(j);
    Lanes weight[kRows];
    Unroll<kRows>([&](auto r) { weight[r] = SetLanes(weights[r * kScoreStride + j]); });
    Unroll<kGroups>([&](auto g) {
      const Words words = LoadWords(row + g * v.kGroupBytes);
      Prefetch(row + g * v.kGroupBytes);
      Unroll<kElements>([&](auto e) {
        const Lanes x = Widen<kFormat>(words, e, zero);
        constexpr int i = g * kElements + e;
        Unroll<kRows>([&](auto r) { sum[r][i] = MulAdd(weight[r], x, sum[r][i]); });
      });
    });
  }
  Unroll<kRows>([&](auto r) {
    Unroll<kVectors>([&](auto i) { StoreLanes(out + r * out_stride + i * kLanes, sum[r][i]); });
  });
}

// weights [rows, kScoreStride], multiplied by V's scale on return.
template <KvFormat kFormat>
void SumFloats(const AttentionBlock& block, float* weights, uint8_t* buffer, float* out,
               float* values) {
  // Keys that are read for all rows and groups before the next ones: they stay in
  // the L1 cache.
  constexpr int64_t kKeys = 32;
  // Registers for sums: 16 of 32, or 8 of 16.
  constexpr int64_t kElements = WordElements(kFormat);
  constexpr int kGroups = kElements < 4 ? static_cast<int>(4 / kElements) : 1;
  constexpr int kRows = static_cast<int>(kLanes / (kGroups * kElements));
  const KvPlane& plane = block.args->v;
  const WordRows<kFormat> v(plane, block.kv_head, block.key_begin);
  const int64_t n = plane.head_dim;
  const int64_t stride = v.vectors() * kLanes;
  const int64_t rows = block.rows();
  const int64_t keys = block.keys();
  if (v.kIsInteger) {
    const float* scale = plane.scale + block.kv_head * plane.capacity + block.key_begin;
    for (int64_t r = 0; r < rows; ++r) {
      float* row = weights + r * kScoreStride;
      for (int64_t j = 0; j < keys; ++j) row[j] *= scale[j];
    }
  }
  std::fill(out, out + rows * stride, 0.0f);
  for (int64_t begin = 0; begin < keys; begin += kKeys) {
    const int64_t end = std::min(keys, begin + kKeys);
    const auto add = [&]<int kSome>(int64_t r) {
      const float* w = weights + r * kScoreStride;
      int64_t g = 0;
      for (; g + kGroups <= v.groups(); g += kGroups) {
        AddValues<kFormat, kSome, kGroups>(v, g, begin, end, w, buffer,
                                           out + r * stride + g * kElements * kLanes, stride);
      }
      for (; g < v.groups(); ++g) {
        AddValues<kFormat, kSome, 1>(v, g, begin, end, w, buffer,
                                     out + r * stride + g * kElements * kLanes, stride);
      }
    };
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows) add.template operator()<kRows>(r);
    for (; r < rows; ++r) add.template operator()<1>(r);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < v.vectors(); ++i) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t element = v.Element(i, lane);
        if (element < n) values[r * n + element] = out[r * stride + i * kLanes + lane];
      }
    }
  }
}

// Calls run<format>().
template <typename Run>
void WithFormat(KvFormat format, const Run& run) {
  switch (format) {
    case KvFormat::kF32:
      return run.template operator()<KvFormat::kF32>();
    case KvFormat::kBF16:
      return run.template operator()<KvFormat::kBF16>();
    case KvFormat::kByte:
      return run.template operator()<KvFormat::kByte>();
    case KvFormat::kNibble:
      return run.template operator()<KvFormat::kNibble>();
  }
}

struct FloatRowsTag {};
struct WholeRowsTag {};

// Scratch of one block: a vector per row in the order of the registers, and whole
// rows of K or V where the cache has none.
struct FloatRowsMemory {
  float* vectors;
  uint8_t* whole;
};

inline FloatRowsMemory FloatRowsScratch(int64_t rows, int64_t head_dim) {
  // The widest group: 8 nibbles in each lane.
  const int64_t elements = (head_dim + 8 * kLanes - 1) / (8 * kLanes) * 8 * kLanes;
  return {ThreadScratch<FloatRowsTag, float>(static_cast<size_t>(rows * elements)),
          ThreadScratch<WholeRowsTag, uint8_t>(static_cast<size_t>(kLanes * elements * 4))};
}

inline void ScoreFloats(const AttentionBlock& block, float* scores) {
  const KvPlane& k = block.args->k;
  const FloatRowsMemory memory = FloatRowsScratch(block.rows(), k.head_dim);
  WithFormat(k.format, [&]<KvFormat kFormat>() {
    ScoreFloats<kFormat>(block, memory.vectors, memory.whole, scores);
  });
}

inline void SumFloats(const AttentionBlock& block, float* weights, float* values) {
  const KvPlane& v = block.args->v;
  const FloatRowsMemory memory = FloatRowsScratch(block.rows(), v.head_dim);
  WithFormat(v.format, [&]<KvFormat kFormat>() {
    SumFloats<kFormat>(block, weights, memory.whole, memory.vectors, values);
  });
}

struct ScoresTag {};

inline void RunFewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  float* scores = ThreadScratch<ScoresTag, float>(static_cast<size_t>(block.rows() * kScoreStride));
  ScoreFloats(block, scores);
  for (int64_t r = 0; r < block.rows(); ++r) {
    Exponentials(block, r, scores + r * kScoreStride, sums.top + r, sums.total + r);
  }
  SumFloats(block, scores, sums.values);
}

}  // namespace
}  // namespace flatquant
