#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/half.h"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/quantize_kv/cuda_kernels.h"

namespace flatquant {
namespace {

using cuda_testing::Host;

struct Case {
  int64_t tokens, heads, kv_heads, dim, capacity, stride;
  int k_bits, v_bits;
  bool rotates, transforms, norms;
  KronClip k_clip, v_clip;
  std::vector<int32_t> positions, slots;
  std::vector<float> cos, sin, q_matrix, k_matrix, q_norm, k_norm;
};

constexpr float kNormEps = 1e-3f;

int RandomBits(Rng& rng) { return rng.Below(3) == 0 ? 16 : 2 + static_cast<int>(rng.Below(3)); }

Case RandomCase(Rng& rng, int64_t most_tokens) {
  Case c;
  c.tokens = cuda_testing::RandomSize(rng, most_tokens);
  c.kv_heads = 1 + static_cast<int64_t>(rng.Below(3));
  c.heads = c.kv_heads * (1 + static_cast<int64_t>(rng.Below(3)));
  c.dim = rng.Below(2) == 0 ? 64 : 128;
  c.capacity = c.tokens + static_cast<int64_t>(rng.Below(30));
  c.stride = (c.heads + 2 * c.kv_heads) * c.dim + 8 * static_cast<int64_t>(rng.Below(3));
  c.k_bits = RandomBits(rng);
  c.v_bits = RandomBits(rng);
  c.rotates = rng.Below(4) != 0;
  c.transforms = rng.Below(4) != 0;
  c.norms = rng.Below(2) != 0;
  c.k_clip = {static_cast<float>(0.7 + 0.3 * rng.Uniform()),
              static_cast<float>(0.7 + 0.3 * rng.Uniform())};
  c.v_clip = {static_cast<float>(0.7 + 0.3 * rng.Uniform()),
              static_cast<float>(0.7 + 0.3 * rng.Uniform())};
  // Two sequences whose tokens alternate.
  for (int64_t t = 0; t < c.tokens; ++t) {
    c.positions.push_back(static_cast<int32_t>(c.capacity - 1 - t / 2));
    c.slots.push_back(static_cast<int32_t>(t % 2));
  }
  for (int64_t i = 0; i < c.capacity * c.dim / 2; ++i) {
    const double angle = 10 * rng.Normal();
    c.cos.push_back(static_cast<float>(std::cos(angle)));
    c.sin.push_back(static_cast<float>(std::sin(angle)));
  }
  c.q_matrix =
      cuda_testing::RandomFloats(rng, c.dim * c.dim, 1 / std::sqrt(static_cast<double>(c.dim)));
  c.k_matrix =
      cuda_testing::RandomFloats(rng, c.dim * c.dim, 1 / std::sqrt(static_cast<double>(c.dim)));
  c.q_norm = cuda_testing::RandomFloats(rng, c.dim);
  c.k_norm = cuda_testing::RandomFloats(rng, c.dim);
  return c;
}

// A vector after norm, rotation and transform, and the root of squares of its terms.
struct Expected {
  std::vector<double> y, size;
};

Expected Apply(const Case& c, std::vector<double> x, int64_t token, const std::vector<float>* norm,
               bool rotates, const std::vector<float>* matrix) {
  const size_t n = x.size();
  if (norm != nullptr) {
    double square = 0;
    for (const double element : x) square += element * element;
    const double factor = 1 / std::sqrt(square / static_cast<double>(n) + kNormEps);
    for (size_t i = 0; i < n; ++i) x[i] *= factor * (*norm)[i];
  }
  if (rotates) {
    const std::vector<double> in = x;
    for (size_t i = 0; i < n / 2; ++i) {
      const size_t at = static_cast<size_t>(c.positions[static_cast<size_t>(token)]) * n / 2 + i;
      x[i] = in[i] * c.cos[at] - in[i + n / 2] * c.sin[at];
      x[i + n / 2] = in[i + n / 2] * c.cos[at] + in[i] * c.sin[at];
    }
  }
  Expected out = {x, std::vector<double>(n, 0.0)};
  if (matrix == nullptr) return out;
  for (size_t j = 0; j < n; ++j) {
    double sum = 0, square = 0;
    for (size_t k = 0; k < n; ++k) {
      const double term = x[k] * (*matrix)[k * n + j];
      sum += term;
      square += term * term;
    }
    out.y[j] = sum;
    out.size[j] = std::sqrt(square);
  }
  return out;
}

struct Plane {
  int bits;
  DeviceBuffer<uint8_t> data, zero;
  DeviceBuffer<uint16_t> scale;
  Plane(const Case& c, int bits)
      : bits(bits),
        data(static_cast<size_t>(2 * c.kv_heads * c.capacity * (bits == 16 ? 4 : 1) * c.dim / 2)),
        zero(static_cast<size_t>(2 * c.kv_heads * c.capacity)),
        scale(static_cast<size_t>(2 * c.kv_heads * c.capacity)) {
    data.Fill(0xff);
    zero.Fill(0xff);
    scale.Fill(0xff);
  }
  CudaKvPlane view(const Case& c) const {
    return {bits,
            c.kv_heads,
            c.dim,
            c.capacity,
            data.get(),
            bits == 16 ? nullptr : scale.get(),
            bits == 16 ? nullptr : zero.get()};
  }
};

using Kernel = void (*)(const CudaQuantizeKvArgs&, CudaStream);

template <typename T>
void RunCase(Rng& rng, int64_t most_tokens, Kernel kernel) {
  const Case c = RandomCase(rng, most_tokens);
  SCOPED_TRACE(::testing::Message() << c.tokens << " tokens, " << c.heads << " heads, "
                                    << c.kv_heads << " KV heads, head_dim " << c.dim << ", "
                                    << c.k_bits << " and " << c.v_bits << " bits");
  const std::vector<T> qkv = cuda_testing::RandomElements<T>(rng, c.tokens * c.stride, 2.0);
  const DeviceBuffer<T> qkv_device(qkv);
  const DeviceBuffer<int32_t> positions(c.positions), slots(c.slots);
  const DeviceBuffer<float> cos(c.cos), sin(c.sin), q_matrix(c.q_matrix), k_matrix(c.k_matrix);
  const DeviceBuffer<T> q_packed(c.q_matrix.size()), k_packed(c.k_matrix.size());
  const DType dtype = cuda::Element<T>::kDType;
  CudaPackHeadTransform(q_matrix.get(), c.dim, dtype, q_packed.get(), nullptr);
  CudaPackHeadTransform(k_matrix.get(), c.dim, dtype, k_packed.get(), nullptr);
  std::vector<T> norms[2];
  for (int i = 0; i < 2; ++i) {
    for (const float x : i == 0 ? c.q_norm : c.k_norm) norms[i].push_back(Host<T>::From(x));
  }
  const DeviceBuffer<T> q_norm(norms[0]), k_norm(norms[1]);
  const Plane k(c, c.k_bits), v(c, c.v_bits);
  DeviceBuffer<T> q(static_cast<size_t>(c.tokens * c.heads * c.dim));
  q.Fill(0xff);
  CudaQuantizeKvArgs args;
  args.dtype = dtype;
  args.qkv = qkv_device.get();
  args.qkv_stride = c.stride;
  args.tokens = c.tokens;
  args.heads = c.heads;
  args.positions = positions.get();
  args.slots = slots.get();
  args.q_norm = c.norms ? q_norm.get() : nullptr;
  args.k_norm = c.norms ? k_norm.get() : nullptr;
  args.norm_eps = kNormEps;
  args.cos = c.rotates ? cos.get() : nullptr;
  args.sin = sin.get();
  args.q_transform = c.transforms ? q_packed.get() : nullptr;
  args.k_transform = c.transforms ? k_packed.get() : nullptr;
  args.k_clip = c.k_clip;
  args.v_clip = c.v_clip;
  args.k = k.view(c);
  args.v = v.view(c);
  args.q = q.get();
  kernel(args, nullptr);
  const std::vector<T> q_host = q.Download();
  struct Host2 {
    std::vector<uint8_t> data, zero;
    std::vector<uint16_t> scale;
  };
  const Host2 host[2] = {{k.data.Download(), k.zero.Download(), k.scale.Download()},
                         {v.data.Download(), v.zero.Download(), v.scale.Download()}};

  std::vector<float> rounded[2];
  for (int i = 0; i < 2; ++i) {
    for (const T x : norms[i]) rounded[i].push_back(static_cast<float>(Host<T>::To(x)));
  }

  cuda_testing::Worst worst_q, worst_wide, worst_scale, worst_code;
  for (int64_t t = 0; t < c.tokens; ++t) {
    for (int64_t head = 0; head < c.heads + 2 * c.kv_heads; ++head) {
      const bool is_q = head < c.heads;
      const bool is_v = head >= c.heads + c.kv_heads;
      std::vector<double> x;
      for (int64_t i = 0; i < c.dim; ++i) {
        x.push_back(Host<T>::To(qkv[static_cast<size_t>(t * c.stride + head * c.dim + i)]));
      }
      const Expected expected =
          Apply(c, x, t, is_v || !c.norms ? nullptr : &rounded[is_q ? 0 : 1], !is_v && c.rotates,
                is_v || !c.transforms ? nullptr
                : is_q                ? &c.q_matrix
                                      : &c.k_matrix);
      // A term has roundings of its vector's and its matrix's element: ten standard
      // deviations of their sum; and a result in T one more.
      std::vector<double> tolerance;
      double most = 0, lo = 0, hi = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        tolerance.push_back(Host<T>::kEpsilon * 8.2 * expected.size[i] +
                            (c.norms ? 3e-6 : 1e-6) * (1 + std::abs(expected.y[i])));
        most = std::max(most, tolerance.back());
        lo = std::min(lo, expected.y[i]);
        hi = std::max(hi, expected.y[i]);
      }
      if (is_q) {
        for (size_t i = 0; i < x.size(); ++i) {
          const size_t at = static_cast<size_t>((t * c.heads + head) * c.dim) + i;
          worst_q.Compare(Host<T>::To(q_host[at]), expected.y[i],
                          tolerance[i] + Host<T>::kEpsilon * std::abs(expected.y[i]), t, head);
        }
        continue;
      }
      const int64_t kv_head = head - c.heads - (is_v ? c.kv_heads : 0);
      const KronClip clip = is_v ? c.v_clip : c.k_clip;
      const Host2& plane = host[is_v ? 1 : 0];
      const size_t vector = static_cast<size_t>(
          (c.slots[static_cast<size_t>(t)] * c.kv_heads + kv_head) * c.capacity +
          c.positions[static_cast<size_t>(t)]);
      const int bits = is_v ? c.v_bits : c.k_bits;
      if (bits == 16) {
        const T* stored =
            reinterpret_cast<const T*>(plane.data.data()) + vector * static_cast<size_t>(c.dim);
        for (size_t i = 0; i < x.size(); ++i) {
          worst_wide.Compare(Host<T>::To(stored[i]), expected.y[i],
                             tolerance[i] + Host<T>::kEpsilon * std::abs(expected.y[i]), t, head);
        }
        continue;
      }
      const double top = (1 << bits) - 1;
      const double scale = BF16ToFloat(plane.scale[vector]);
      const double zero = plane.zero[vector];
      const double exact_scale = (clip.max * hi - clip.min * lo) / top;
      worst_scale.Compare(scale, exact_scale, (2 * most + 1e-5) / top + 0x1p-8 * exact_scale, t,
                          head);
      worst_scale.Compare(zero, -clip.min * lo / scale, 0.5 + 1e-4 + most / scale, t, head);
      for (size_t i = 0; i < x.size(); ++i) {
        const uint8_t byte = plane.data[vector * static_cast<size_t>(c.dim / 2) + i / 2];
        const double code = i % 2 == 0 ? byte & 15 : byte >> 4;
        const double exact = std::min(std::max(expected.y[i] / scale + zero, 0.0), top);
        worst_code.Compare(code, exact, 0.5 + 1e-4 + tolerance[i] / scale, t, head);
      }
    }
  }
  worst_q.Check();
  worst_wide.Check();
  worst_scale.Check();
  worst_code.Check();
}

void ExpectFormulaOften(int64_t most_tokens, Kernel kernel) {
  cuda_testing::ForEachCase(20, [&](Rng& rng) {
    rng.Below(2) == 0 ? RunCase<__half>(rng, most_tokens, kernel)
                      : RunCase<__nv_bfloat16>(rng, most_tokens, kernel);
  });
}

TEST(CudaQuantizeKvTest, MmaMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  ExpectFormulaOften(150, cuda::QuantizeKvMma);
}

TEST(CudaQuantizeKvTest, WgmmaMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  ExpectFormulaOften(150, cuda::QuantizeKvWgmma);
}

TEST(CudaQuantizeKvTest, DispatchMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  ExpectFormulaOften(500, CudaQuantizeKv);
}

}  // namespace
}  // namespace flatquant
