#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachSeed;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;

struct Plane {
  std::vector<uint8_t> data;
  std::vector<float> scale;
  std::vector<uint8_t> zero;
  KvPlane view;
};

Plane MakePlane(KvFormat format, int bits, int64_t heads, int64_t head_dim, int64_t capacity) {
  Plane plane;
  const size_t vectors = static_cast<size_t>(heads * capacity);
  plane.data.assign(vectors * KvRowBytes(format, head_dim), 0xcc);
  plane.scale.assign(vectors, -1);
  plane.zero.assign(vectors, 0xcc);
  plane.view = {
      format,           bits, heads, head_dim, capacity, plane.data.data(), plane.scale.data(),
      plane.zero.data()};
  return plane;
}

int Code(const Plane& plane, size_t vector, int64_t i) {
  const uint8_t* row =
      plane.data.data() + vector * KvRowBytes(plane.view.format, plane.view.head_dim);
  if (plane.view.format == KvFormat::kByte) return row[i];
  return i % 2 == 0 ? row[i / 2] & 15 : row[i / 2] >> 4;
}

// The formula's steps are single float operations, so the result is exact.
TEST(QuantizeKvTest, CodesFollowTheFormulaExactly) {
  ThreadPool pool(2);
  ForEachSeed(100, [&](Rng& rng) {
    const int bits = 2 + static_cast<int>(rng.Below(7));
    const int64_t heads = RandomSize(rng, 5), head_dim = RandomSize(rng, 70);
    const int64_t tokens = RandomSize(rng, 20), first = static_cast<int64_t>(rng.Below(4));
    Plane plane = MakePlane(bits <= 4 ? KvFormat::kNibble : KvFormat::kByte, bits, heads, head_dim,
                            first + tokens + 2);
    AlignedBuffer<float> x = RandomFloats(rng, tokens * heads * head_dim);
    const uint64_t kind = rng.Below(4);  // mixed signs, positive, negative, zeros
    for (float& value : x) {
      value = kind == 0 ? value : kind == 1 ? std::abs(value) : kind == 2 ? -std::abs(value) : 0;
    }
    const float clip_max = 0.5f + 0.5f * static_cast<float>(rng.Uniform());
    const float clip_min = 0.5f + 0.5f * static_cast<float>(rng.Uniform());
    QuantizeKv({x.data(), tokens, first, clip_max, clip_min, plane.view}, pool);
    const float top = static_cast<float>((1 << bits) - 1);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        const float* v = x.data() + (t * heads + h) * head_dim;
        const float lo = clip_min * std::min(0.0f, *std::min_element(v, v + head_dim));
        const float hi = clip_max * std::max(0.0f, *std::max_element(v, v + head_dim));
        const float scale = hi == lo ? 1.0f : (hi - lo) / top;
        const float zero = hi == lo ? 0.0f : std::nearbyint(-lo / scale);
        const size_t vector = static_cast<size_t>(h * plane.view.capacity + first + t);
        ASSERT_EQ(plane.scale[vector], scale);
        ASSERT_EQ(plane.zero[vector], zero);
        for (int64_t i = 0; i < head_dim; ++i) {
          const float q = std::nearbyint(v[i] / scale) + zero;
          ASSERT_EQ(Code(plane, vector, i), std::clamp(q, 0.0f, top)) << "element " << i;
        }
      }
    }
    // Neighbouring positions are untouched.
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t p = 0; p < plane.view.capacity; ++p) {
        if (p >= first && p < first + tokens) continue;
        ASSERT_EQ(plane.scale[static_cast<size_t>(h * plane.view.capacity + p)], -1);
      }
    }
  });
}

TEST(QuantizeKvTest, FloatFormatsStoreValues) {
  ThreadPool pool(1);
  Rng rng(3);
  const AlignedBuffer<float> x = RandomFloats(rng, 2 * 3 * 5);
  Plane f32 = MakePlane(KvFormat::kF32, 16, 3, 5, 4);
  Plane bf16 = MakePlane(KvFormat::kBF16, 16, 3, 5, 4);
  QuantizeKv({x.data(), 2, 1, 1, 1, f32.view}, pool);
  QuantizeKv({x.data(), 2, 1, 1, 1, bf16.view}, pool);
  for (size_t t = 0; t < 2; ++t) {
    for (size_t h = 0; h < 3; ++h) {
      for (size_t i = 0; i < 5; ++i) {
        const float value = x[(t * 3 + h) * 5 + i];
        const size_t index = (h * 4 + 1 + t) * 5 + i;
        EXPECT_EQ(reinterpret_cast<const float*>(f32.data.data())[index], value);
        EXPECT_EQ(reinterpret_cast<const uint16_t*>(bf16.data.data())[index], FloatToBF16(value));
      }
    }
  }
}

TEST(QuantizeKvTest, NanBecomesACodeOfTheGrid) {
  ThreadPool pool(1);
  Plane plane = MakePlane(KvFormat::kNibble, 3, 1, 4, 1);
  const float x[] = {NAN, 1.0f, -1.0f, 0.5f};
  QuantizeKv({x, 1, 0, 1, 1, plane.view}, pool);
  for (int64_t i = 0; i < 4; ++i) EXPECT_LE(Code(plane, 0, i), 7);
}

}  // namespace
}  // namespace flatquant
