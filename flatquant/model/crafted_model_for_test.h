#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/tensor.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/model/network.h"

// Configurations and checkpoints that the tests of this room make up.
namespace flatquant::testing {

// A small Llama: 2 layers, hidden 32, 4 heads of 8, 2 KV heads.
inline nlohmann::json SmallConfig(const std::string& model_type = "llama") {
  return {{"model_type", model_type},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"num_hidden_layers", 2},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"vocab_size", 20},
          {"rms_norm_eps", 1e-5},
          {"head_dim", 8},
          {"max_position_embeddings", 64}};
}

// The name of the error that f throws, or nothing.
template <typename F>
std::string ErrorName(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.name();
  }
  return "";
}

// Tensors by name, filled with numbers that differ from tensor to tensor.
class CraftedWeights {
 public:
  explicit CraftedWeights(const ModelConfig& config) {
    Add("model.embed_tokens.weight", {config.vocab, config.hidden});
    for (int64_t layer = 0; layer < config.layers; ++layer) {
      for (Linear linear : kLinears) {
        const LinearShape shape = ShapeOf(config, linear);
        Add(LinearPath(layer, linear) + ".weight", {shape.rows, shape.cols});
        if (HasBias(config, linear)) Add(LinearPath(layer, linear) + ".bias", {shape.rows});
      }
      Add(NormPath(layer, Norm::kInput) + ".weight", {config.hidden});
      Add(NormPath(layer, Norm::kPostAttention) + ".weight", {config.hidden});
      if (!config.qk_norm) continue;
      Add(NormPath(layer, Norm::kQ) + ".weight", {config.head_dim});
      Add(NormPath(layer, Norm::kK) + ".weight", {config.head_dim});
    }
    Add("model.norm.weight", {config.hidden});
    if (!config.tied_embeddings) Add("lm_head.weight", {config.vocab, config.hidden});
  }

  void Add(const std::string& name, std::vector<int64_t> shape) {
    const float value = static_cast<float>(tensors.size()) + 0.5f;
    TensorView view{DType::kF32, shape, nullptr};
    tensors[name] = Tensor::Floats(std::move(shape), std::vector<float>(view.elements(), value));
  }

  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
};

inline void WriteText(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline void WriteModel(const std::filesystem::path& folder, const nlohmann::json& config,
                       const CraftedWeights& weights) {
  std::filesystem::create_directories(folder);
  WriteText(folder / "config.json", config.dump(2));
  WriteSafetensors(folder / "model.safetensors", {weights.tensors.begin(), weights.tensors.end()},
                   weights.metadata);
}

}  // namespace flatquant::testing
