#include <gtest/gtest.h>

#include <vector>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/store_heads/store_heads.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

// Random vectors of one role with random steps.
struct Case {
  AlignedBuffer<float> x, norm, cos, sin, matrix, y;
  KronTransform transform;
  StoreHeadsArgs args;
};

Case RandomCase(Rng& rng, int64_t heads, int64_t head_dim) {
  Case c;
  const int64_t tokens = RandomSize(rng, 40);
  c.x = RandomFloats(rng, tokens * heads * head_dim);
  c.norm = RandomFloats(rng, head_dim);
  c.cos = RandomFloats(rng, tokens * head_dim / 2 + 1);
  c.sin = RandomFloats(rng, tokens * head_dim / 2 + 1);
  c.matrix = RandomFloats(rng, head_dim * head_dim);
  c.y = AlignedBuffer<float>(c.x.size());
  c.transform =
      PackKronTransform(1, nullptr, head_dim, reinterpret_cast<const std::byte*>(c.matrix.data()));
  c.args.x = c.x.data();
  c.args.tokens = tokens;
  c.args.heads = heads;
  c.args.head_dim = head_dim;
  c.args.norm_eps = 1e-5f;
  c.args.y = c.y.data();
  if (rng.Below(2) == 0) c.args.norm = c.norm.data();
  if (rng.Below(2) == 0 && head_dim % 2 == 0) {
    c.args.cos = c.cos.data();
    c.args.sin = c.sin.data();
  }
  if (rng.Below(2) == 0) c.args.transform = &c.transform;
  return c;
}

// One vector in double, and per element the magnitude of what was added for it.
void Formula(const Case& c, int64_t token, int64_t head, std::vector<double>& value,
             std::vector<double>& magnitude) {
  const int64_t n = c.args.head_dim;
  const float* x = c.args.x + (token * c.args.heads + head) * n;
  value.assign(x, x + n);
  if (c.args.norm != nullptr) {
    double squares = 0;
    for (double v : value) squares += v * v;
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + c.args.norm_eps);
    for (size_t i = 0; i < value.size(); ++i) value[i] *= scale * c.args.norm[i];
  }
  magnitude.clear();
  for (double v : value) magnitude.push_back(std::abs(v));
  const auto half = static_cast<size_t>(n / 2);
  for (size_t i = 0; c.args.cos != nullptr && i < half; ++i) {
    const double cos = c.args.cos[static_cast<size_t>(token) * half + i];
    const double sin = c.args.sin[static_cast<size_t>(token) * half + i];
    const double a = value[i], b = value[half + i];
    value[i] = a * cos - b * sin;
    value[half + i] = b * cos + a * sin;
    magnitude[i] = std::abs(a * cos) + std::abs(b * sin);
    magnitude[half + i] = std::abs(b * cos) + std::abs(a * sin);
  }
  if (c.args.transform == nullptr) return;
  std::vector<double> product(value.size()), sum(value.size());
  for (size_t i = 0; i < value.size(); ++i) {
    for (size_t j = 0; j < value.size(); ++j) {
      const double element = c.matrix[i * value.size() + j];
      product[j] += value[i] * element;
      sum[j] += magnitude[i] * std::abs(element);
    }
  }
  value = product;
  magnitude = sum;
}

// The norm's factor is off by at most (n + 6) epsilon (a sum of n squares under a
// root, and the operations around it); the rotation rounds twice, the product n times.
TEST(StoreHeadsTest, AgreesWithTheFormula) {
  ThreadPool pool(2);
  ForEachKernel<StoreHeadsKernel>([&](const StoreHeadsKernel& kernel) {
    ForEachSeed(100, [&](Rng& rng) {
      const int64_t head_dim = rng.Below(2) == 0 ? RandomSize(rng, 70) : 2 * RandomSize(rng, 65);
      const Case c = RandomCase(rng, RandomSize(rng, 9), head_dim);
      StoreHeads(std::span(&c.args, 1), pool, &kernel);
      Worst worst;
      std::vector<double> value, magnitude;
      for (int64_t t = 0; t < c.args.tokens; ++t) {
        for (int64_t h = 0; h < c.args.heads; ++h) {
          Formula(c, t, h, value, magnitude);
          for (int64_t i = 0; i < head_dim; ++i) {
            const auto e = static_cast<size_t>(i);
            worst.Compare(c.y[static_cast<size_t>((t * c.args.heads + h) * head_dim + i)], value[e],
                          static_cast<double>(2 * head_dim + 10) * kEpsilon * magnitude[e], t,
                          h * head_dim + i);
          }
        }
      }
      worst.Check();
    });
  });
}

struct Plane {
  std::vector<uint8_t> data, zero;
  std::vector<float> scale;
  KvPlane view;
};

Plane MakePlane(KvFormat format, int bits, int64_t heads, int64_t head_dim, int64_t capacity) {
  Plane plane;
  const auto vectors = static_cast<size_t>(heads * capacity);
  plane.data.assign(vectors * KvRowBytes(format, head_dim), 0xcc);
  plane.zero.assign(vectors, 0xcc);
  plane.scale.assign(vectors, -1);
  plane.view = {
      format,           bits, heads, head_dim, capacity, plane.data.data(), plane.scale.data(),
      plane.zero.data()};
  return plane;
}

// What goes to the cache is, bit for bit, QuantizeKv of what would go to y; several
// items in one call.
TEST(StoreHeadsTest, AppendsWhatQuantizeKvMakesOfTheResult) {
  constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kNibble,
                                   KvFormat::kByte};
  ThreadPool pool(2);
  ForEachKernel<StoreHeadsKernel>([&](const StoreHeadsKernel& kernel) {
    ForEachSeed(100, [&](Rng& rng) {
      const int64_t heads = RandomSize(rng, 5), head_dim = RandomSize(rng, 140);
      const KvFormat format = kFormats[rng.Below(4)];
      const int bits = (format == KvFormat::kNibble ? 2 : 5) + static_cast<int>(rng.Below(3));
      Case cases[2] = {RandomCase(rng, heads, head_dim), RandomCase(rng, heads, head_dim)};
      if (rng.Below(4) == 0) std::fill(cases[0].x.begin(), cases[0].x.end(), 0.0f);
      if (rng.Below(4) == 0) cases[1].x[0] = NAN;
      std::vector<Plane> expected, actual;
      std::vector<StoreHeadsArgs> items;
      for (Case& c : cases) {
        StoreHeads(std::span(&c.args, 1), pool, &kernel);  // to y
        c.args.first_position = static_cast<int64_t>(rng.Below(3));
        c.args.clip_max = 0.5f + 0.5f * static_cast<float>(rng.Uniform());
        c.args.clip_min = 0.5f + 0.5f * static_cast<float>(rng.Uniform());
        const int64_t capacity = c.args.first_position + c.args.tokens + 1;
        expected.push_back(MakePlane(format, bits, heads, head_dim, capacity));
        actual.push_back(MakePlane(format, bits, heads, head_dim, capacity));
        QuantizeKv({c.y.data(), c.args.tokens, c.args.first_position, c.args.clip_max,
                    c.args.clip_min, expected.back().view},
                   pool);
        items.push_back(c.args);
        items.back().y = nullptr;
        items.back().plane = actual.back().view;
      }
      StoreHeads(items, pool, &kernel);
      for (size_t i = 0; i < 2; ++i) {
        ASSERT_EQ(actual[i].data, expected[i].data);
        ASSERT_EQ(actual[i].scale, expected[i].scale);
        ASSERT_EQ(actual[i].zero, expected[i].zero);
      }
    });
  });
}

}  // namespace
}  // namespace flatquant
