#pragma once

#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/base/tensor.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/config.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/random_model.h"
#include "tests/support/shared_data.h"

// Small random networks that the tests of this room quantize.
namespace flatquant::compress {

// Grouped heads, no width square, hidden 24 = 2 x 12, ffn 44 = 2 x 22.
inline ModelConfig TinyLlama() {
  ModelConfig config;
  config.architecture = Architecture::kLlama;
  config.hidden = 24;
  config.ffn = 44;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.vocab = 40;
  config.max_positions = 64;
  config.tied_embeddings = true;
  config.eos = {2};
  return config;
}

// QKV bias, one KV head, a sliding window, widths without factors of equal parity:
// 14 = 2 x 7, 22 = 2 x 11.
inline ModelConfig TinyQwen2() {
  ModelConfig config = TinyLlama();
  config.architecture = Architecture::kQwen2;
  config.qkv_bias = true;
  config.hidden = 14;
  config.ffn = 22;
  config.heads = 3;
  config.kv_heads = 1;
  config.head_dim = 6;
  config.sliding_window = 7;
  config.tied_embeddings = false;
  return config;
}

// Per-head norms on q and k, q wider than the hidden size, prime widths: 13, 31.
inline ModelConfig TinyQwen3() {
  ModelConfig config = TinyLlama();
  config.architecture = Architecture::kQwen3;
  config.qk_norm = true;
  config.hidden = 13;
  config.ffn = 31;
  return config;
}

// Plain multi-head attention with biases everywhere.
inline ModelConfig TinyWithBiases() {
  ModelConfig config = TinyLlama();
  config.kv_heads = config.heads;
  config.qkv_bias = config.o_bias = config.mlp_bias = true;
  return config;
}

// A Hugging Face directory of this shape with random float32 weights, the first
// channel of each norm being an outlier that round to nearest suffers from.
inline std::filesystem::path WriteTinyModel(const ModelConfig& config, uint64_t seed) {
  const std::filesystem::path folder = testing::ScratchFolder();
  std::ofstream(folder / "config.json") << ConfigJson(config);

  Rng rng(seed);
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, double mean,
                       double deviation) {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = static_cast<float>(mean + deviation * rng.Normal());
    if (mean != 0) values[0] = 6.0f;
    tensors.emplace_back(name, Tensor::Floats(std::move(shape), std::move(values)));
  };
  const auto path = [](std::string_view prefix, const char* suffix) {
    return std::string(prefix) + suffix;
  };
  add(path(kEmbeddingPath, ".weight"), {config.vocab, config.hidden}, 0, 1);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    add(path(NormPath(layer, Norm::kInput), ".weight"), {config.hidden}, 1, 0.2);
    add(path(NormPath(layer, Norm::kPostAttention), ".weight"), {config.hidden}, 1, 0.2);
    if (config.qk_norm) {
      add(path(NormPath(layer, Norm::kQ), ".weight"), {config.head_dim}, 1, 0.2);
      add(path(NormPath(layer, Norm::kK), ".weight"), {config.head_dim}, 1, 0.2);
    }
    for (const Linear which : kLinears) {
      const LinearShape shape = ShapeOf(config, which);
      add(path(LinearPath(layer, which), ".weight"), {shape.rows, shape.cols}, 0,
          1 / std::sqrt(static_cast<double>(shape.cols)));
      if (HasBias(config, which)) {
        add(path(LinearPath(layer, which), ".bias"), {shape.rows}, 0, 0.5);
      }
    }
  }
  add(path(kFinalNormPath, ".weight"), {config.hidden}, 1, 0.2);
  if (!config.tied_embeddings) {
    add(path(kLmHeadPath, ".weight"), {config.vocab, config.hidden}, 0, 1);
  }
  std::vector<std::pair<std::string, TensorView>> views(tensors.begin(), tensors.end());
  WriteSafetensors(folder / "model.safetensors", views);
  return folder;
}

inline TokenWindows RandomWindows(const ModelConfig& config, int64_t count, int64_t length,
                                  uint64_t seed) {
  Rng rng(seed);
  TokenWindows windows{count, length, {}};
  for (int64_t i = 0; i < count * length; ++i) {
    windows.ids.push_back(static_cast<int32_t>(rng.Below(static_cast<uint64_t>(config.vocab))));
  }
  return windows;
}

}  // namespace flatquant::compress
