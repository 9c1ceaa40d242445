#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "flatquant/base/tensor.h"
#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/model/config.h"
#include "flatquant/model/network.h"

namespace flatquant {

// A full-precision Hugging Face model directory: its configuration and its
// weights by role, mapped, all present and of the right shape and a float type
// once Open returns.
class SourceModel {
 public:
  // Errors: config.*, safetensors.*, checkpoint.*, model.already_quantized,
  // model.missing_tensor, model.unexpected_tensor (a bias or norm that config.json
  // denies), model.wrong_shape, model.wrong_dtype. config() says that the
  // embeddings are tied also where only the checkpoint's metadata knows it.
  static SourceModel Open(const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  const ModelConfig& config() const { return config_; }
  const Checkpoint& checkpoint() const { return checkpoint_; }

  Tensor Weight(int64_t layer, Linear linear) const;  // [rows, cols]
  Tensor Bias(int64_t layer, Linear linear) const;    // [rows], undefined without
  Tensor NormWeight(int64_t layer, Norm norm) const;  // [hidden] or [head_dim]
  Tensor Embedding() const;                           // [vocab, hidden]
  Tensor FinalNorm() const;                           // [hidden]
  Tensor LmHead() const;  // [vocab, hidden]; the embedding when they are tied

  // Every tensor that the network uses, once, with its canonical name (a tied
  // pair appears as the embedding), in forward order.
  void Visit(const std::function<void(const std::string& name, const Tensor&)>& visitor) const;

 private:
  std::filesystem::path directory_;
  ModelConfig config_;
  Checkpoint checkpoint_;
};

}  // namespace flatquant
