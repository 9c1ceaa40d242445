#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/half.h"
#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_prefill.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"

namespace flatquant {
namespace {

using cuda_testing::Host;
using cuda_testing::RandomElements;

// A cache of random vectors, on the device and here.
template <typename T>
struct Plane {
  int bits;
  int64_t heads, head_dim, capacity;
  double magnitude;  // of elements, about
  std::vector<uint8_t> data, zero;
  std::vector<uint16_t> scale;
  DeviceBuffer<uint8_t> data_device, zero_device;
  DeviceBuffer<uint16_t> scale_device;

  Plane(Rng& rng, int64_t slots, int64_t heads, int64_t head_dim, int64_t capacity)
      : bits(rng.Below(2) == 0 ? 4 : 16), heads(heads), head_dim(head_dim), capacity(capacity) {
    const int64_t vectors = slots * heads * capacity;
    // From tiny to large, as far as half holds results: errors are relative.
    magnitude = std::exp2(16 * rng.Uniform() - 12) / 4;
    if (bits == 16) {
      const std::vector<T> elements = RandomElements<T>(rng, vectors * head_dim, magnitude);
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(elements.data());
      data.assign(bytes, bytes + elements.size() * 2);
      return;
    }
    for (int64_t i = 0; i < vectors * head_dim / 2; ++i)
      data.push_back(static_cast<uint8_t>(rng.Next()));
    for (int64_t i = 0; i < vectors; ++i) {
      zero.push_back(static_cast<uint8_t>(rng.Below(16)));
      scale.push_back(FloatToBF16(static_cast<float>(magnitude * (0.2 + 0.4 * rng.Uniform()))));
    }
  }
  // Positions that a sequence has not reached hold no numbers.
  void Poison(int64_t slot, int64_t from) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t first = (slot * heads + head) * capacity;
      const int64_t bytes = view().VectorBytes();
      std::fill(data.begin() + (first + from) * bytes, data.begin() + (first + capacity) * bytes,
                uint8_t{0xff});
      if (bits == 16) continue;
      std::fill(zero.begin() + first + from, zero.begin() + first + capacity, uint8_t{0xff});
      std::fill(scale.begin() + first + from, scale.begin() + first + capacity, FloatToBF16(NAN));
    }
  }
  void Upload() {
    data_device = DeviceBuffer<uint8_t>(data);
    zero_device = DeviceBuffer<uint8_t>(zero);
    scale_device = DeviceBuffer<uint16_t>(scale);
  }
  CudaKvPlane view() const {
    return {bits,
            heads,
            head_dim,
            capacity,
            data_device.get(),
            bits == 16 ? nullptr : scale_device.get(),
            bits == 16 ? nullptr : zero_device.get()};
  }
  // A code's step; 0 where there are none.
  double Step(int64_t slot, int64_t head, int64_t position) const {
    if (bits == 16) return 0;
    return BF16ToFloat(scale[static_cast<size_t>((slot * heads + head) * capacity + position)]);
  }
  double At(int64_t slot, int64_t head, int64_t position, int64_t i) const {
    const size_t vector = static_cast<size_t>((slot * heads + head) * capacity + position);
    const size_t element = vector * static_cast<size_t>(head_dim) + static_cast<size_t>(i);
    if (bits == 16) return Host<T>::To(reinterpret_cast<const T*>(data.data())[element]);
    const uint8_t byte = data[element / 2];
    return ((i % 2 == 0 ? byte & 15 : byte >> 4) - zero[vector]) *
           double{BF16ToFloat(scale[vector])};
  }
};

// One query against positions [begin, end): the output and, beside it, sum_j p_j |v_j|.
template <typename T>
void Compare(const T* q, const T* y, const Plane<T>& k, const Plane<T>& v, int64_t slot,
             int64_t head, int64_t begin, int64_t end, double scale, int64_t index,
             cuda_testing::Worst& worst) {
  const int64_t n = k.head_dim;
  std::vector<double> weight;
  double top = -INFINITY;
  double size = 0;  // of a score's terms
  for (int64_t j = begin; j < end; ++j) {
    double dot = 0, terms = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double term = Host<T>::To(q[i]) * k.At(slot, head, j, i);
      dot += term;
      terms += std::abs(term) + std::abs(Host<T>::To(q[i])) * 15 * k.Step(slot, head, j);
    }
    weight.push_back(scale * dot);
    top = std::max(top, weight.back());
    size = std::max(size, scale * terms);
  }
  double sum = 0;
  for (double& w : weight) sum += w = std::exp(w - top);
  // What weights are rounded to: bfloat16 with V's scales, or T, whose least number is an
  // absolute error where it is half.
  const double rounding = v.bits == 16 ? Host<T>::kEpsilon : 0x1p-8;
  // Codes and their zero points may be summed up apart (up to 15 steps each), and as halves below
  // the normal ones, 2^-24 for a step, which tensor cores align as they do 2^-14, 1024 steps.
  const double sums = std::ceil(static_cast<double>(end - begin) / 16);
  double step = 0;
  for (int64_t j = begin; j < end; ++j) {
    step += weight[static_cast<size_t>(j - begin)] / sum * v.Step(slot, head, j);
  }
  for (int64_t i = 0; i < n; ++i) {
    double expected = 0, absolute = 0, plain = 0;
    for (int64_t j = begin; j < end; ++j) {
      const double value = v.At(slot, head, j, i);
      const double term = weight[static_cast<size_t>(j - begin)] / sum * value;
      expected += term;
      absolute += std::abs(term);
      plain += std::abs(value) / sum;
    }
    // Beside the weights' rounding: scores and sums over V computed in float (a tensor core's sum
    // keeps at least 2^-22 of its terms), the result rounded to T.
    const double tolerance = (rounding + 4 * 0x1p-22 * size) * absolute + 0x1p-25 * plain +
                             0x1p-22 * (1024 + 15 * sums) * step +
                             Host<T>::kEpsilon * std::abs(expected) + 1e-7;
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
  // Now and then more short sequences than a GPU has places for their CTAs.
  const bool many = rng.Below(8) == 0;
  const int64_t tokens = (many ? 600 : 1) + static_cast<int64_t>(rng.Below(4));
  const int64_t slots_total = tokens + 1;
  const int64_t capacity = RoundUpTo(cuda_testing::RandomSize(rng, many ? 60 : 900), 32);
  SCOPED_TRACE(::testing::Message() << tokens << " tokens, " << heads << " heads, "
                                    << sizes.kv_heads << " KV heads, head_dim " << sizes.head_dim
                                    << ", capacity " << capacity << ", window " << sizes.window);
  Plane<T> k(rng, slots_total, sizes.kv_heads, sizes.head_dim, capacity);
  Plane<T> v(rng, slots_total, sizes.kv_heads, sizes.head_dim, capacity);
  std::vector<int32_t> slots, lengths;
  for (int64_t i = 0; i < tokens; ++i) {
    slots.push_back(static_cast<int32_t>(tokens - i));
    lengths.push_back(static_cast<int32_t>(1 + rng.Below(static_cast<uint64_t>(capacity))));
    k.Poison(slots.back(), lengths.back());
    v.Poison(slots.back(), lengths.back());
  }
  k.Upload();
  v.Upload();
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
      static_cast<float>(0.3 / std::sqrt(static_cast<double>(sizes.head_dim)) / k.magnitude);
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

using PrefillKernel = void (*)(const CudaAttentionPrefillArgs&, CudaStream);

// One sequence, or several in one launch, whose rows lie apart and in any order.
template <typename T>
void RunPrefill(Rng& rng, PrefillKernel kernel) {
  const Sizes sizes = RandomSizes(rng);
  const int64_t heads = sizes.kv_heads * sizes.group;
  const int64_t count = rng.Below(2) == 0 ? 1 : 1 + static_cast<int64_t>(rng.Below(5));
  const bool segmented = count > 1 || rng.Below(2) == 0;
  std::vector<CudaAttentionSegment> segments;
  int64_t rows = 0, capacity = 0;
  for (int64_t i = 0; i < count; ++i) {
    CudaAttentionSegment segment;
    segment.slot = static_cast<int32_t>(count - i);
    segment.first_position = rng.Below(2) == 0 ? 0 : static_cast<int32_t>(rng.Below(300));
    segment.tokens = static_cast<int32_t>(cuda_testing::RandomSize(rng, 400));
    if (segmented && rng.Below(8) == 0) segment.tokens = 0;
    segment.first_row = static_cast<int32_t>(rows);
    rows += segment.tokens + (segmented ? static_cast<int64_t>(rng.Below(3)) : 0);
    capacity = std::max<int64_t>(capacity, segment.first_position + segment.tokens);
    segments.push_back(segment);
  }
  std::reverse(segments.begin(), segments.end());
  capacity = RoundUpTo(capacity + 1, 32);
  SCOPED_TRACE(::testing::Message()
               << count << " segments, the first of " << segments[0].tokens << " tokens from "
               << segments[0].first_position << ", " << heads << " heads, " << sizes.kv_heads
               << " KV heads, head_dim " << sizes.head_dim << ", window " << sizes.window);
  Plane<T> k(rng, count + 1, sizes.kv_heads, sizes.head_dim, capacity);
  Plane<T> v(rng, count + 1, sizes.kv_heads, sizes.head_dim, capacity);
  k.Poison(0, 0);
  v.Poison(0, 0);
  for (const CudaAttentionSegment& segment : segments) {
    k.Poison(segment.slot, segment.first_position + segment.tokens);
    v.Poison(segment.slot, segment.first_position + segment.tokens);
  }
  k.Upload();
  v.Upload();
  const std::vector<T> q = RandomElements<T>(rng, rows * heads * sizes.head_dim);
  const DeviceBuffer<T> q_device(q);
  DeviceBuffer<T> y(q.size());
  y.Fill(0xff);
  CudaAttentionPrefillArgs args;
  args.dtype = cuda::Element<T>::kDType;
  args.q = q_device.get();
  args.y = y.get();
  args.tokens = rows;
  args.heads = heads;
  args.window = sizes.window;
  args.scale =
      static_cast<float>(0.3 / std::sqrt(static_cast<double>(sizes.head_dim)) / k.magnitude);
  args.k = k.view();
  args.v = v.view();
  args.slot = segments[0].slot;
  args.first_position = segments[0].first_position;
  if (segmented) {
    args.segments = segments.data();
    args.segment_count = count;
  }
  kernel(args, nullptr);
  const std::vector<T> out = y.Download();
  cuda_testing::Worst worst;
  std::vector<char> named(static_cast<size_t>(rows), 0);
  for (const CudaAttentionSegment& segment : segments) {
    for (int64_t i = 0; i < segment.tokens; ++i)
      named[static_cast<size_t>(segment.first_row + i)] = 1;
    // The reference is slow: some tokens of every block of heads.
    const int64_t vectors = segment.tokens * heads;
    const int64_t stride = std::max<int64_t>(1, vectors / 60);
    for (int64_t i = static_cast<int64_t>(rng.Below(static_cast<uint64_t>(stride))); i < vectors;
         i += stride) {
      const int64_t end = segment.first_position + i / heads + 1;
      const int64_t begin = sizes.window > 0 ? std::max<int64_t>(0, end - sizes.window) : 0;
      const size_t at = static_cast<size_t>((segment.first_row * heads + i) * sizes.head_dim);
      Compare<T>(&q[at], &out[at], k, v, segment.slot, i % heads / sizes.group, begin, end,
                 args.scale, i, worst);
    }
  }
  worst.Check();
  for (size_t i = 0; i < out.size(); ++i) {
    const bool is_named = named[i / static_cast<size_t>(heads * sizes.head_dim)] != 0;
    ASSERT_EQ(std::isnan(Host<T>::To(out[i])), !is_named) << "row not written, or another one";
  }
}

void RunPrefills(PrefillKernel kernel) {
  cuda_testing::ForEachCase(40, [&](Rng& rng) {
    rng.Below(2) == 0 ? RunPrefill<__half>(rng, kernel) : RunPrefill<__nv_bfloat16>(rng, kernel);
  });
}

TEST(CudaAttentionTest, DecodeMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    rng.Below(2) == 0 ? RunDecode<__half>(rng) : RunDecode<__nv_bfloat16>(rng);
  });
}

TEST(CudaAttentionTest, PrefillMmaMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  RunPrefills(cuda::AttentionPrefillMma);
}

TEST(CudaAttentionTest, PrefillWgmmaMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  RunPrefills(cuda::AttentionPrefillWgmma);
}

TEST(CudaAttentionTest, PrefillDispatchMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(10, [](Rng& rng) { RunPrefill<__half>(rng, CudaAttentionPrefill); });
}

TEST(CudaAttentionTest, OtherHeadSizesAreRefused) {
  FLATQUANT_NEEDS_CUDA();
  CudaAttentionPrefillArgs args;
  args.tokens = args.heads = 1;
  args.k.heads = 1;
  args.k.head_dim = 80;
  args.k.capacity = 32;
  args.v = args.k;
  try {
    CudaAttentionPrefill(args, nullptr);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "cuda.unsupported_head_dim");
  }
}

}  // namespace
}  // namespace flatquant
