#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"

namespace flatquant {
namespace {

using cuda_testing::Host;
using cuda_testing::RandomElements;

// A cache of random codes, on the device and here.
struct Plane {
  int64_t heads, head_dim, capacity;
  std::vector<uint8_t> data, zero;
  std::vector<float> scale;
  DeviceBuffer<uint8_t> data_device, zero_device;
  DeviceBuffer<float> scale_device;

  Plane(Rng& rng, int64_t slots, int64_t heads, int64_t head_dim, int64_t capacity)
      : heads(heads), head_dim(head_dim), capacity(capacity) {
    const int64_t vectors = slots * heads * capacity;
    // Scales from tiny to large, as far as half holds results: errors are relative.
    const double magnitude = std::exp2(16 * rng.Uniform() - 12);
    for (int64_t i = 0; i < vectors * head_dim / 2; ++i)
      data.push_back(static_cast<uint8_t>(rng.Next()));
    for (int64_t i = 0; i < vectors; ++i) {
      zero.push_back(static_cast<uint8_t>(rng.Below(16)));
      scale.push_back(static_cast<float>(magnitude * (0.05 + 0.1 * rng.Uniform())));
    }
    data_device = DeviceBuffer<uint8_t>(data);
    zero_device = DeviceBuffer<uint8_t>(zero);
    scale_device = DeviceBuffer<float>(scale);
  }
  CudaKvPlane view() const {
    return {4, heads, head_dim, capacity, data_device.get(), scale_device.get(), zero_device.get()};
  }
  double At(int64_t slot, int64_t head, int64_t position, int64_t i) const {
    const size_t vector = static_cast<size_t>((slot * heads + head) * capacity + position);
    const uint8_t byte =
        data[vector * static_cast<size_t>(head_dim / 2) + static_cast<size_t>(i / 2)];
    return ((i % 2 == 0 ? byte & 15 : byte >> 4) - zero[vector]) * double{scale[vector]};
  }
  double Scale(int64_t slot, int64_t head) const {
    return scale[static_cast<size_t>((slot * heads + head) * capacity)];
  }
};

// One query against positions [begin, end): the output and, beside it, sum_j p_j |v_j|.
template <typename T>
void Compare(const T* q, const T* y, const Plane& k, const Plane& v, int64_t slot, int64_t head,
             int64_t begin, int64_t end, double scale, int64_t index, cuda_testing::Worst& worst) {
  const int64_t n = k.head_dim;
  std::vector<double> weight;
  double top = -INFINITY;
  double size = 0;  // of a score's terms
  for (int64_t j = begin; j < end; ++j) {
    double dot = 0, terms = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double term = Host<T>::To(q[i]) * k.At(slot, head, j, i);
      dot += term;
      terms += std::abs(term);
    }
    weight.push_back(scale * dot);
    top = std::max(top, weight.back());
    size = std::max(size, scale * terms);
  }
  double sum = 0;
  for (double& w : weight) sum += w = std::exp(w - top);
  for (int64_t i = 0; i < n; ++i) {
    double expected = 0, absolute = 0;
    for (int64_t j = begin; j < end; ++j) {
      const double term = weight[static_cast<size_t>(j - begin)] / sum * v.At(slot, head, j, i);
      expected += term;
      absolute += std::abs(term);
    }
    // Weights times scales are rounded to bfloat16, scores computed in float (a tensor
    // core's sum keeps at least 2^-22 of its terms), the result rounded to T.
    const double tolerance =
        (0x1p-8 + 4 * 0x1p-22 * size) * absolute + Host<T>::kEpsilon * std::abs(expected) + 1e-7;
    worst.Compare(Host<T>::To(y[i]), expected, tolerance, index, i);
  }
}

struct Sizes {
  int64_t kv_heads, group, head_dim, window;
  double scale;
};

Sizes RandomSizes(Rng& rng) {
  const int64_t groups[] = {1, 1, 2, 4, 8, 12};
  Sizes sizes;
  sizes.kv_heads = 1 + static_cast<int64_t>(rng.Below(3));
  sizes.group = groups[rng.Below(6)];
  sizes.head_dim = rng.Below(2) == 0 ? 64 : 128;
  sizes.window = rng.Below(3) == 0 ? 1 + static_cast<int64_t>(rng.Below(300)) : 0;
  return sizes;
}

template <typename T>
void RunDecode(Rng& rng) {
  const Sizes sizes = RandomSizes(rng);
  const int64_t heads = sizes.kv_heads * sizes.group;
  const int64_t tokens = 1 + static_cast<int64_t>(rng.Below(4));
  const int64_t slots_total = tokens + 1;
  const int64_t capacity = RoundUpTo(cuda_testing::RandomSize(rng, 900), 32);
  SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << heads << " heads, "
                                    << sizes.kv_heads << " KV heads, head_dim " << sizes.head_dim
                                    << ", capacity " << capacity << ", window " << sizes.window);
  const Plane k(rng, slots_total, sizes.kv_heads, sizes.head_dim, capacity);
  const Plane v(rng, slots_total, sizes.kv_heads, sizes.head_dim, capacity);
  std::vector<int32_t> slots, lengths;
  for (int64_t i = 0; i < tokens; ++i) {
    slots.push_back(static_cast<int32_t>((i * 2 + 1) % slots_total));
    lengths.push_back(static_cast<int32_t>(1 + rng.Below(static_cast<uint64_t>(capacity))));
  }
  const std::vector<T> q = RandomElements<T>(rng, tokens * heads * sizes.head_dim);
  const DeviceBuffer<T> q_device(q);
  DeviceBuffer<T> y(q.size());
  y.Fill(0xff);
  const DeviceBuffer<int32_t> slots_device(slots), lengths_device(lengths);
  CudaAttentionDecodeArgs args;
  args.dtype = cuda::Element<T>::kDType;
  args.q = q_device.get();
  args.y = y.get();
  args.tokens = tokens;
  args.heads = heads;
  args.window = sizes.window;
  args.scale =
      static_cast<float>(0.3 / std::sqrt(static_cast<double>(sizes.head_dim)) / k.Scale(0, 0) / 4);
  args.k = k.view();
  args.v = v.view();
  args.slots = slots_device.get();
  args.lengths = lengths_device.get();
  args.max_length = capacity;
  DeviceBuffer<uint8_t> workspace(static_cast<size_t>(CudaAttentionWorkspaceBytes(args)));
  workspace.Fill(0xff);
  args.workspace = workspace.get();
  CudaAttentionDecode(args, nullptr);
  const std::vector<T> out = y.Download();
  cuda_testing::Worst worst;
  for (int64_t i = 0; i < tokens * heads; ++i) {
    const size_t token = static_cast<size_t>(i / heads);
    const int64_t end = lengths[token];
    const int64_t begin = sizes.window > 0 ? std::max<int64_t>(0, end - sizes.window) : 0;
    const size_t at = static_cast<size_t>(i * sizes.head_dim);
    Compare<T>(&q[at], &out[at], k, v, slots[token], i % heads / sizes.group, begin, end,
               args.scale, i, worst);
  }
  worst.Check();
}

template <typename T>
void RunPrefill(Rng& rng) {
  const Sizes sizes = RandomSizes(rng);
  const int64_t heads = sizes.kv_heads * sizes.group;
  const int64_t tokens = cuda_testing::RandomSize(rng, 200);
  const int64_t first = rng.Below(2) == 0 ? 0 : static_cast<int64_t>(rng.Below(200));
  const int64_t capacity = RoundUpTo(first + tokens, 32);
  SCOPED_TRACE(::testing::Message() << tokens << " tokens from " << first << ", " << heads
                                    << " heads, " << sizes.kv_heads << " KV heads, head_dim "
                                    << sizes.head_dim << ", window " << sizes.window);
  const Plane k(rng, 2, sizes.kv_heads, sizes.head_dim, capacity);
  const Plane v(rng, 2, sizes.kv_heads, sizes.head_dim, capacity);
  const std::vector<T> q = RandomElements<T>(rng, tokens * heads * sizes.head_dim);
  const DeviceBuffer<T> q_device(q);
  DeviceBuffer<T> y(q.size());
  y.Fill(0xff);
  CudaAttentionPrefillArgs args;
  args.dtype = cuda::Element<T>::kDType;
  args.q = q_device.get();
  args.y = y.get();
  args.tokens = tokens;
  args.heads = heads;
  args.window = sizes.window;
  args.scale =
      static_cast<float>(0.3 / std::sqrt(static_cast<double>(sizes.head_dim)) / k.Scale(0, 0) / 4);
  args.k = k.view();
  args.v = v.view();
  args.slot = 1;
  args.first_position = first;
  CudaAttentionPrefill(args, nullptr);
  const std::vector<T> out = y.Download();
  cuda_testing::Worst worst;
  // The reference is slow: some tokens of every block of heads.
  const int64_t stride = std::max<int64_t>(1, tokens * heads / 60);
  for (int64_t i = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(stride)));
       i < tokens * heads; i += stride) {
    const int64_t end = first + i / heads + 1;
    const int64_t begin = sizes.window > 0 ? std::max<int64_t>(0, end - sizes.window) : 0;
    const size_t at = static_cast<size_t>(i * sizes.head_dim);
    Compare<T>(&q[at], &out[at], k, v, 1, i % heads / sizes.group, begin, end, args.scale, i,
               worst);
  }
  worst.Check();
  for (const T& value : out) ASSERT_FALSE(std::isnan(Host<T>::To(value))) << "not written";
}

TEST(CudaAttentionTest, DecodeMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(30, [](Rng& rng) {
    rng.Below(2) == 0 ? RunDecode<__half>(rng) : RunDecode<__nv_bfloat16>(rng);
  });
}

TEST(CudaAttentionTest, PrefillMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(30, [](Rng& rng) {
    rng.Below(2) == 0 ? RunPrefill<__half>(rng) : RunPrefill<__nv_bfloat16>(rng);
  });
}

TEST(CudaAttentionTest, OtherHeadSizesAreRefused) {
  FLATQUANT_NEEDS_CUDA();
  CudaAttentionPrefillArgs args;
  args.tokens = args.heads = 1;
  args.k.heads = 1;
  args.k.head_dim = 80;
  args.k.capacity = 1;
  try {
    CudaAttentionPrefill(args, nullptr);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "cuda.unsupported_head_dim");
  }
}

}  // namespace
}  // namespace flatquant
