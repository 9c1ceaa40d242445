#include <gtest/gtest.h>

#include <cmath>

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"

namespace flatquant {
namespace {

using cuda_testing::Host;
using cuda_testing::RandomElements;
using cuda_testing::RandomSize;

struct Case {
  int64_t tokens, left, right, x_stride, code_stride;
  bool transforms = true;
  CudaSiteInput input;
  int bits, clip_count;
  KronClip clips[kCudaMaxClips];
  std::vector<float> left_matrix, right_matrix;  // empty: the identity
  int64_t width() const { return left * right; }
};

Case RandomCase(Rng& rng, int64_t left, int64_t right, bool transforms = true) {
  Case c;
  c.transforms = transforms;
  c.tokens = RandomSize(rng, 12);
  c.left = left;
  c.right = right;
  c.x_stride = RoundUpTo(c.width(), 8) + 8 * static_cast<int64_t>(rng.Below(2));
  c.code_stride = RoundUpTo(c.width(), 64) + 64 * static_cast<int64_t>(rng.Below(2));
  c.input = static_cast<CudaSiteInput>(rng.Below(3));
  c.bits = rng.Below(4) == 0 ? 16 : 2 + static_cast<int>(rng.Below(7));
  c.clip_count = 1 + static_cast<int>(rng.Below(3));
  for (KronClip& clip : c.clips) {
    clip = {static_cast<float>(0.7 + 0.3 * rng.Uniform()),
            static_cast<float>(0.7 + 0.3 * rng.Uniform())};
  }
  const auto matrix = [&](int64_t n) {
    return rng.Below(4) == 0
               ? std::vector<float>()
               : cuda_testing::RandomFloats(rng, n * n, 1 / std::sqrt(static_cast<double>(n)));
  };
  if (!transforms) return c;
  c.left_matrix = matrix(left);
  c.right_matrix = matrix(right);
  return c;
}

// A token's result in double and, element by element, the root of the sum of squares of
// the terms behind it.
struct Expected {
  std::vector<double> y;
  std::vector<double> size;
};

Expected Transform(const Case& c, const std::vector<double>& x) {
  const auto element = [](const std::vector<float>& matrix, int64_t n, int64_t i, int64_t j) {
    return matrix.empty() ? double(i == j) : double{matrix[static_cast<size_t>(i * n + j)]};
  };
  const size_t width = static_cast<size_t>(c.width());
  Expected half = {std::vector<double>(width), std::vector<double>(width)};
  Expected out = half;
  for (int64_t i = 0; i < c.left; ++i) {
    for (int64_t j = 0; j < c.right; ++j) {
      double sum = 0, square = 0;
      for (int64_t k = 0; k < c.right; ++k) {
        const double term =
            x[static_cast<size_t>(i * c.right + k)] * element(c.right_matrix, c.right, k, j);
        sum += term;
        square += term * term;
      }
      half.y[static_cast<size_t>(i * c.right + j)] = sum;
      half.size[static_cast<size_t>(i * c.right + j)] = square;
    }
  }
  for (int64_t i = 0; i < c.left; ++i) {
    for (int64_t j = 0; j < c.right; ++j) {
      double sum = 0, square = 0;
      for (int64_t k = 0; k < c.left; ++k) {
        const double factor = element(c.left_matrix, c.left, k, i);
        const size_t at = static_cast<size_t>(k * c.right + j);
        sum += factor * half.y[at];
        square += factor * factor * (half.size[at] + half.y[at] * half.y[at]);
      }
      out.y[static_cast<size_t>(i * c.right + j)] = sum;
      out.size[static_cast<size_t>(i * c.right + j)] = std::sqrt(square);
    }
  }
  return out;
}

template <typename T>
void RunCase(Rng& rng, const Case& c, void (*kernel)(const CudaKronQuantizeArgs&, CudaStream)) {
  SCOPED_TRACE(::testing::Message() << c.tokens << " tokens, " << c.left << " x " << c.right << ", "
                                    << c.bits << " bits, input " << static_cast<int>(c.input));
  const int64_t width = c.width();
  const std::vector<T> x = RandomElements<T>(rng, c.tokens * c.x_stride, 2.0);
  const std::vector<T> up = RandomElements<T>(rng, c.tokens * c.x_stride);
  const std::vector<T> weight = RandomElements<T>(rng, width);
  const DeviceBuffer<T> x_device(x), up_device(up), weight_device(weight);
  const DeviceBuffer<float> left(c.left_matrix), right(c.right_matrix);
  const DeviceBuffer<uint8_t> packed(
      static_cast<size_t>(c.transforms ? CudaKronPackedBytes(c.left, c.right) : 0));
  if (c.transforms)
    CudaPackKron(c.left, c.left_matrix.empty() ? nullptr : left.get(), c.right,
                 c.right_matrix.empty() ? nullptr : right.get(), cuda::Element<T>::kDType,
                 packed.get(), nullptr);
  DeviceBuffer<T> y(static_cast<size_t>(c.tokens * width));
  DeviceBuffer<int8_t> codes(static_cast<size_t>(c.clip_count * c.tokens * c.code_stride));
  DeviceBuffer<float> scales(static_cast<size_t>(c.clip_count * c.tokens));
  y.Fill(0xff);
  codes.Fill(0x55);
  scales.Fill(0xff);
  CudaKronQuantizeArgs args;
  args.dtype = cuda::Element<T>::kDType;
  args.input = c.input;
  args.x = x_device.get();
  args.up = up_device.get();
  args.norm_weight = weight_device.get();
  args.x_stride = c.x_stride;
  args.width = width;
  args.tokens = c.tokens;
  if (c.transforms) args.transform = {c.left, c.right, packed.get()};
  args.bits = c.bits;
  args.y = y.get();
  std::copy(c.clips, c.clips + kCudaMaxClips, args.clips);
  args.clip_count = c.clip_count;
  args.codes = codes.get();
  args.code_stride = c.code_stride;
  args.scales = scales.get();
  kernel(args, nullptr);
  const std::vector<T> y_host = y.Download();
  const std::vector<int8_t> codes_host = codes.Download();
  const std::vector<float> scales_host = scales.Download();

  cuda_testing::Worst worst_y, worst_scale, worst_code;
  for (int64_t t = 0; t < c.tokens; ++t) {
    std::vector<double> in(static_cast<size_t>(width));
    double square = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double value = Host<T>::To(x[static_cast<size_t>(t * c.x_stride + i)]);
      square += value * value;
      in[static_cast<size_t>(i)] = value;
      if (c.input == CudaSiteInput::kRmsNorm) {
        in[static_cast<size_t>(i)] *= Host<T>::To(weight[static_cast<size_t>(i)]);
      } else if (c.input == CudaSiteInput::kSwiglu) {
        in[static_cast<size_t>(i)] = value / (1 + std::exp(-value)) *
                                     Host<T>::To(up[static_cast<size_t>(t * c.x_stride + i)]);
      }
    }
    const double factor = c.input == CudaSiteInput::kRmsNorm
                              ? 1 / std::sqrt(square / static_cast<double>(width) + args.eps)
                              : 1.0;
    const Expected expected =
        c.transforms ? Transform(c, in) : Expected{in, std::vector<double>(in.size(), 0.0)};
    // Every term carries roundings of its input and of both matrices' elements, every
    // inner sum one more, the result at most one: independent, each of standard
    // deviation epsilon / sqrt(3). Ten such deviations of the terms' root of squares.
    double tolerance_max = 0, max = 0, min = 0;
    std::vector<double> tolerance(in.size());
    for (size_t i = 0; i < in.size(); ++i) {
      tolerance[i] =
          Host<T>::kEpsilon * (10 * expected.size[i] + 2.5 * std::abs(expected.y[i])) + 1e-7;
      tolerance_max = std::max(tolerance_max, tolerance[i]);
      max = std::max(max, expected.y[i]);
      min = std::min(min, expected.y[i]);
    }
    for (int64_t i = 0; c.bits == 16 && i < width; ++i) {
      const size_t at = static_cast<size_t>(i);
      worst_y.Compare(Host<T>::To(y_host[static_cast<size_t>(t * width + i)]),
                      factor * expected.y[at], factor * tolerance[at] + 1e-7, t, i);
    }
    const double top = (1 << (c.bits - 1)) - 1;
    for (int clip = 0; c.bits < 16 && clip < c.clip_count; ++clip) {
      const int64_t index = clip * c.tokens + t;
      const double scale = scales_host[static_cast<size_t>(index)];
      double want =
          std::max(std::abs(c.clips[clip].max * max), std::abs(c.clips[clip].min * min)) / top;
      if (want == 0) want = 1;
      worst_scale.Compare(scale, factor * want, factor * (tolerance_max / top + 1e-5 * want), index,
                          0);
      for (int64_t i = 0; i < c.code_stride; ++i) {
        const double code = codes_host[static_cast<size_t>(index * c.code_stride + i)];
        if (i >= width) {
          EXPECT_EQ(code, 0) << "padding";
          continue;
        }
        const size_t at = static_cast<size_t>(i);
        const double exact = std::min(std::max(factor * expected.y[at] / scale, -top - 1), top);
        worst_code.Compare(code, exact, 0.5 + 1e-4 + factor * tolerance[at] / scale, index, i);
      }
    }
  }
  worst_y.Check();
  worst_scale.Check();
  worst_code.Check();
}

void RunEither(Rng& rng, const Case& c, void (*kernel)(const CudaKronQuantizeArgs&, CudaStream)) {
  if (rng.Below(2) == 0) {
    RunCase<__half>(rng, c, kernel);
  } else {
    RunCase<__nv_bfloat16>(rng, c, kernel);
  }
}

TEST(CudaKronQuantizeTest, MmaMatchesTheFormula) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    RunEither(rng, RandomCase(rng, RandomSize(rng, 60), RandomSize(rng, 90)),
              cuda::KronQuantizeMma);
  });
}

TEST(CudaKronQuantizeTest, WgmmaMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    const int64_t right = rng.Below(2) == 0 ? 64 : 128;
    Case c = RandomCase(rng, RandomSize(rng, right), right);
    c.tokens = std::min<int64_t>(c.tokens, 4);
    RunEither(rng, c, cuda::KronQuantizeWgmma);
  });
}

TEST(CudaKronQuantizeTest, WideMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    const int64_t right = 2 * RandomSize(rng, 128);
    Case c = RandomCase(rng, RandomSize(rng, std::min<int64_t>(right, 192)), right);
    c.tokens = std::min<int64_t>(c.tokens, 4);
    if (!cuda::KronQuantizeWideSupports({c.left, c.right, nullptr})) return;
    RunEither(rng, c, cuda::KronQuantizeWide);
  });
}

TEST(CudaKronQuantizeTest, WideTakesWhatFitsInSharedMemory) {
  FLATQUANT_NEEDS_HOPPER();
  const auto takes = [](int64_t left, int64_t right) {
    return cuda::KronQuantizeWideSupports({left, right, nullptr});
  };
  EXPECT_TRUE(takes(192, 192));
  EXPECT_TRUE(takes(128, 256));
  EXPECT_FALSE(takes(129, 256));
  EXPECT_FALSE(takes(193, 192));
  EXPECT_FALSE(takes(64, 258));
  EXPECT_FALSE(takes(64, 75));
  EXPECT_FALSE(takes(0, 80));
}

TEST(CudaKronQuantizeTest, ModelsWidths) {
  FLATQUANT_NEEDS_CUDA();
  const std::pair<int64_t, int64_t> sizes[] = {
      {64, 64}, {86, 128}, {112, 128}, {32, 128},  {128, 128}, {112, 169}, {32, 48},
      {64, 76}, {64, 80},  {80, 112},  {128, 148}, {168, 176}, {144, 192}, {128, 224}};
  Rng rng(3);
  for (const auto& [left, right] : sizes) {
    Case c = RandomCase(rng, left, right);
    c.tokens = 2;
    RunEither(rng, c, CudaKronQuantize);
  }
}

TEST(CudaKronQuantizeTest, RowsWithoutATransform) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(20, [](Rng& rng) {
    const int64_t width = rng.Below(2) == 0 ? RandomSize(rng, 5000) : 8 * RandomSize(rng, 800);
    Case c = RandomCase(rng, 1, width, false);
    RunEither(rng, c, cuda::QuantizeRows);
  });
}

TEST(CudaKronQuantizeTest, StreamMatchesTheFormula) {
  FLATQUANT_NEEDS_HOPPER();
  cuda_testing::ForEachCase(40, [](Rng& rng) {
    const int64_t right = rng.Below(2) == 0 ? 64 : 128;
    Case c = RandomCase(rng, RandomSize(rng, right), right);
    c.bits = std::min(c.bits, 8);
    c.input = CudaSiteInput::kPlain;
    RunEither(rng, c, cuda::KronQuantizeStream);
  });
}

// More tokens than CTAs: matrices stay, tokens turn over.
TEST(CudaKronQuantizeTest, ManyTokens) {
  FLATQUANT_NEEDS_HOPPER();
  Rng rng(5);
  struct Shape {
    int64_t left, right, tokens;
  };
  for (const Shape& shape : {Shape{16, 64, 3000}, {24, 128, 1200}, {86, 128, 300}}) {
    for (const CudaSiteInput input :
         {CudaSiteInput::kPlain, CudaSiteInput::kRmsNorm, CudaSiteInput::kSwiglu}) {
      for (const int bits : {4, 16}) {
        if (bits == 16 && shape.right == 128) continue;
        Case c = RandomCase(rng, shape.left, shape.right);
        c.tokens = shape.tokens;
        c.input = input;
        c.bits = bits;
        RunEither(rng, c, cuda::KronQuantizeWgmma);
      }
    }
  }
}

// The same, with codes of the token before where X has no rows, and no columns.
TEST(CudaKronQuantizeTest, ManyWideTokens) {
  FLATQUANT_NEEDS_HOPPER();
  Rng rng(6);
  for (const int64_t right : {52, 76, 148, 180}) {
    Case c = RandomCase(rng, 20, right);
    c.tokens = 1500;
    RunEither(rng, c, cuda::KronQuantizeWide);
  }
}

TEST(CudaKronQuantizeTest, ATokenOfZerosHasScaleOne) {
  FLATQUANT_NEEDS_CUDA();
  const DeviceBuffer<__half> x(std::vector<__half>(4096, Host<__half>::From(0)));
  const DeviceBuffer<uint8_t> packed(static_cast<size_t>(CudaKronPackedBytes(64, 64)));
  CudaPackKron(64, nullptr, 64, nullptr, DType::kF16, packed.get(), nullptr);
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  const DeviceBuffer<int8_t> codes(4096);
  const DeviceBuffer<float> scales(1);
  CudaKronQuantizeArgs args;
  args.x = x.get();
  args.x_stride = args.width = args.code_stride = 4096;
  args.tokens = 1;
  args.transform = {64, 64, packed.get()};
  args.codes = codes.get();
  args.scales = scales.get();
  CudaKronQuantize(args, nullptr);
  EXPECT_EQ(scales.Download()[0], 1.0f);
  for (const int8_t code : codes.Download()) ASSERT_EQ(code, 0);
}

TEST(CudaKronQuantizeTest, WidthsBeyondSharedMemoryAreRefused) {
  FLATQUANT_NEEDS_CUDA();
  CudaKronQuantizeArgs args;
  args.tokens = 1;
  args.width = args.x_stride = args.code_stride = 256 * 512;
  args.transform = {256, 512, nullptr};
  try {
    CudaKronQuantize(args, nullptr);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "cuda.unsupported_width");
  }
}

}  // namespace
}  // namespace flatquant
