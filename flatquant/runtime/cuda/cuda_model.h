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
  // Integers where weights have at most 4 bits and the activations at most 8, else
  // 16-bit floats [rows, cols].
  bool is_integer = false;
  DeviceBuffer<uint8_t> packed;
  DeviceBuffer<uint16_t> floats;
  DeviceBuffer<float> scale;
  DeviceBuffer<float> bias;        // integers'; empty without
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
  DeviceBuffer<uint16_t> lm_head;    // [vocab, hidden]; empty: the embedding
  std::vector<double> rope_frequencies;

  const uint16_t* head() const { return lm_head.size() > 0 ? lm_head.get() : embedding.get(); }
  uint64_t head_bytes() const { return static_cast<uint64_t>(config.vocab * config.hidden) * 2; }
};

// Uploads a model to the current device. dtype: kF16 or kBF16. Errors: cuda.unsupported
// (a network or scheme that the CUDA kernels do not cover: says which), cuda.failed
// (out of memory: says how much the model needs).
CudaModel LoadCudaModel(PackedModel model, DType dtype, ThreadPool& pool);

}  // namespace flatquant
