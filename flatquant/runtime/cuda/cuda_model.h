#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/cuda/device_buffer.cuh"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"
#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// A network in a GPU's memory, every matrix in the layout of the kernel that
// multiplies it. 16-bit values are of one type, fp16 or bf16.

// Linears of one site that read the same codes, as one product: their rows follow each
// other, each linear's at a multiple of 8.
struct CudaLinears {
  int64_t rows = 0;  // padding between linears included
  int64_t cols = 0;
  int64_t first_row = 0;  // of the site's output
  size_t clip = 0;        // which of the site's quantizations they read
  // Weights of at most 4 bits stay packed where a kernel multiplies them with the site's
  // activations; others are 16-bit floats [rows, cols].
  bool is_packed = false;
  DeviceBuffer<uint8_t> packed;
  DeviceBuffer<uint16_t> floats;
  DeviceBuffer<float> scale;
  DeviceBuffer<float> bias;        // packed ones'; empty without
  DeviceBuffer<uint16_t> bias_16;  // floats'; empty without

  CudaGemmIntWeights weights() const;
  uint64_t bytes() const;
};

struct CudaSite {
  int64_t width = 0;
  int64_t output = 0;  // elements of all linears' outputs, a multiple of 8
  int act_bits = 16;
  std::vector<KronClip> clips;
  DeviceBuffer<uint16_t> matrices;
  CudaKronTransform transform;
  std::vector<CudaLinears> linears;  // one product for each clip, or one for all

  uint64_t bytes() const;
};

struct CudaBlock {
  DeviceBuffer<uint16_t> input_norm;
  DeviceBuffer<uint16_t> post_attention_norm;
  std::array<CudaSite, 4> sites;  // indexed by Site
  int k_bits = 4;
  int v_bits = 4;
  KronClip k_clip;
  KronClip v_clip;
  DeviceBuffer<uint16_t> q_norm;  // empty without
  DeviceBuffer<uint16_t> k_norm;
  DeviceBuffer<uint16_t> k_transform;  // empty without
  DeviceBuffer<uint16_t> q_transform;

  const CudaSite& site(Site which) const { return sites[static_cast<size_t>(which)]; }
  uint64_t bytes() const;
};

struct CudaModel {
  ModelConfig config;
  DType dtype = DType::kF16;
  std::vector<CudaBlock> blocks;
  DeviceBuffer<uint16_t> final_norm;
  int head_act_bits = 16;
  DeviceBuffer<uint16_t> embedding;  // [vocab, hidden]
  // The output projection: 8-bit codes where it has some and activations have 8 bits too,
  // else floats; with neither it is the embedding.
  DeviceBuffer<uint16_t> lm_head;   // [vocab, hidden]
  DeviceBuffer<int8_t> head_codes;  // [vocab, head_stride()]
  DeviceBuffer<float> head_scale;   // [vocab]
  std::vector<double> rope_frequencies;

  const uint16_t* head() const { return lm_head.size() > 0 ? lm_head.get() : embedding.get(); }
  bool has_integer_head() const { return head_codes.size() > 0; }
  int64_t head_stride() const { return RoundUpTo(config.hidden, 16); }
  uint64_t head_bytes() const {
    if (has_integer_head()) return head_codes.bytes() + head_scale.bytes();
    return static_cast<uint64_t>(config.vocab * config.hidden) * sizeof(uint16_t);
  }
};

// Uploads a model to the current device. dtype: kF16 or kBF16. Errors: cuda.unsupported
// (a network or scheme that the CUDA kernels do not cover: says which), cuda.failed
// (out of memory: says how much the model needs).
CudaModel LoadCudaModel(PackedModel model, DType dtype, ThreadPool& pool);

}  // namespace flatquant
