#pragma once

#include <cmath>

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"

namespace flatquant::cuda_testing {

struct GemmIntSize {
  int64_t tokens, rows, cols;
  // Scales that are powers of two: products with them are exact, so that kernels agree to the
  // bit whichever products they contract with sums.
  bool exact_scales = false;
};

// A random linear layer of this size, in host and device memory; strides, bias and residual
// at random.
template <typename T>
struct GemmIntProblem {
  GemmIntProblem(Rng& rng, const GemmIntSize& the_size) : size(the_size) {
    const auto& [tokens, rows, cols, exact_scales] = size;
    act_stride = RoundUpTo(cols, 64) + 64 * static_cast<int64_t>(rng.Below(2));
    y_stride = RoundUpTo(rows, 8) + 8 * static_cast<int64_t>(rng.Below(2));
    has_bias = rng.Below(2) == 0;
    has_residual = rng.Below(2) == 0;
    // Codes of up to 8 bits now and then; the sums must be exact all the same.
    const int64_t reach = rng.Below(4) == 0 ? 256 : 16;
    act.assign(static_cast<size_t>(tokens * act_stride), 0);
    for (int64_t i = 0; i < tokens; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        act[static_cast<size_t>(i * act_stride + j)] = static_cast<int8_t>(
            static_cast<int64_t>(rng.Below(static_cast<uint64_t>(reach))) - reach / 2);
      }
    }
    weight.resize(static_cast<size_t>(rows * cols));
    for (int8_t& w : weight) w = static_cast<int8_t>(static_cast<int>(rng.Next() >> 60) - 8);
    for (int64_t i = 0; i < tokens; ++i) {
      act_scale.push_back(0.01f + static_cast<float>(rng.Uniform()));
    }
    for (int64_t i = 0; i < CudaGemmIntPaddedRows(rows); ++i) {
      scale.push_back(0.001f + static_cast<float>(rng.Uniform()) / 50);
    }
    if (exact_scales) {
      for (std::vector<float>* scales : {&act_scale, &scale}) {
        for (float& x : *scales) x = std::exp2(std::round(std::log2(x)));
      }
    }
    bias = RandomFloats(rng, CudaGemmIntPaddedRows(rows));
    // Poison: a NaN in every element, which padding must still hold afterwards.
    before.assign(static_cast<size_t>(tokens * y_stride), Host<T>::From(NAN));
    if (has_residual) before = RandomElements<T>(rng, tokens * y_stride, 3.0);
    Upload();
  }

  // y after kernel(args), which had the residual in its place.
  template <typename Kernel>
  std::vector<T> Run(const Kernel& kernel) {
    y.Upload(before);
    CudaGemmIntArgs args;
    args.act = device_act.get();
    args.act_stride = act_stride;
    args.act_scale = device_act_scale.get();
    args.tokens = size.tokens;
    args.weights = {size.rows, size.cols, packed.get(), device_scale.get(),
                    has_bias ? device_bias.get() : nullptr};
    args.dtype = cuda::Element<T>::kDType;
    args.residual = has_residual ? y.get() : nullptr;
    args.y = y.get();
    args.y_stride = y_stride;
    kernel(args, nullptr);
    return y.Download();
  }

  GemmIntSize size;
  int64_t act_stride, y_stride;
  bool has_bias, has_residual;
  std::vector<int8_t> act;     // [tokens, act_stride]
  std::vector<int8_t> weight;  // [rows, cols]
  std::vector<float> act_scale, scale, bias;
  std::vector<T> before;  // [tokens, y_stride]

 private:
  void Upload() {
    const int64_t row_bytes = (size.cols + 1) / 2;
    std::vector<uint8_t> nibbles(static_cast<size_t>(size.rows * row_bytes), 0);
    for (int64_t r = 0; r < size.rows; ++r) {
      for (int64_t k = 0; k < size.cols; ++k) {
        nibbles[static_cast<size_t>(r * row_bytes + k / 2)] |= static_cast<uint8_t>(
            (weight[static_cast<size_t>(r * size.cols + k)] & 15) << (k % 2 * 4));
      }
    }
    const DeviceBuffer<uint8_t> canonical(nibbles);
    packed =
        DeviceBuffer<uint8_t>(static_cast<size_t>(CudaGemmIntPackedBytes(size.rows, size.cols)));
    packed.Fill(0xff);
    CudaPackGemmInt(canonical.get(), size.rows, size.cols, packed.get(), nullptr);
    FLATQUANT_CUDA(cudaDeviceSynchronize());
    device_act = DeviceBuffer<int8_t>(act);
    device_act_scale = DeviceBuffer<float>(act_scale);
    device_scale = DeviceBuffer<float>(scale);
    device_bias = DeviceBuffer<float>(bias);
    y = DeviceBuffer<T>(before.size());
  }

  DeviceBuffer<uint8_t> packed;
  DeviceBuffer<int8_t> device_act;
  DeviceBuffer<float> device_act_scale, device_scale, device_bias;
  DeviceBuffer<T> y;
};

}  // namespace flatquant::cuda_testing
