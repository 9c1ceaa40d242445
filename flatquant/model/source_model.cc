#include "flatquant/model/source_model.h"

#include <string_view>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

std::string WeightName(std::string_view path) { return std::string(path) + ".weight"; }
std::string BiasName(std::string_view path) { return std::string(path) + ".bias"; }

// The tensor of that name. safetensors stores tensors that share memory once and
// notes in the metadata, under the name that it left out, the one that it kept
// (tinystories-656k keeps only lm_head.weight).
const Tensor* Find(const Checkpoint& checkpoint, const std::string& name) {
  if (const Tensor* tensor = checkpoint.Find(name)) return tensor;
  const auto alias = checkpoint.metadata().find(name);
  return alias == checkpoint.metadata().end() ? nullptr : checkpoint.Find(alias->second);
}

// Checks what the accessors rely on, naming the tensor that disappoints.
class Validator {
 public:
  Validator(const Checkpoint& checkpoint, const std::filesystem::path& directory)
      : checkpoint_(checkpoint), where_(directory.string()) {}

  void Require(const std::string& name, const std::vector<int64_t>& shape) const {
    const Tensor* tensor = Find(checkpoint_, name);
    if (tensor == nullptr) {
      throw Error("model.missing_tensor", where_, "tensor '" + name + "' is missing", Hint(name));
    }
    if (tensor->shape != shape) {
      throw Error("model.wrong_shape", where_,
                  "tensor '" + name + "' has shape " + tensor->ShapeString() +
                      ", but config.json asks for " +
                      TensorView{DType::kF32, shape, nullptr}.ShapeString(),
                  "use the config.json that belongs to the weights");
    }
    if (!IsFloat(tensor->dtype)) {
      throw Error("model.wrong_dtype", where_,
                  "tensor '" + name + "' has dtype " + std::string(DTypeName(tensor->dtype)),
                  "use a full-precision checkpoint (F32, F16 or BF16)");
    }
  }

  // A tensor that would be silently ignored, although it changes the result.
  void Refuse(const std::string& name) const {
    if (checkpoint_.Find(name) == nullptr) return;
    throw Error("model.unexpected_tensor", where_,
                "tensor '" + name + "' has no place in the network that config.json describes",
                "use the config.json that belongs to the weights");
  }

 private:
  std::string Hint(std::string_view name) const {
    constexpr std::string_view kPrefix = "model.";
    const std::string_view bare = name.starts_with(kPrefix) ? name.substr(kPrefix.size()) : name;
    for (const auto& [other, tensor] : checkpoint_.tensors()) {
      if (other == bare || (other.size() > bare.size() && other.ends_with(bare) &&
                            other[other.size() - bare.size() - 1] == '.')) {
        return "the checkpoint calls it '" + other +
               "': rename its tensors as Hugging Face's causal language models do";
      }
    }
    return "use a complete checkpoint of a causal language model, with its own config.json";
  }

  const Checkpoint& checkpoint_;
  std::string where_;
};

void Validate(const ModelConfig& config, const Validator& validator) {
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    for (Norm norm : {Norm::kInput, Norm::kPostAttention}) {
      validator.Require(WeightName(NormPath(layer, norm)), {config.hidden});
    }
    for (Norm norm : {Norm::kQ, Norm::kK}) {
      const std::string name = WeightName(NormPath(layer, norm));
      if (config.qk_norm) {
        validator.Require(name, {config.head_dim});
      } else {
        validator.Refuse(name);
      }
    }
    for (Linear linear : kLinears) {
      const std::string path = LinearPath(layer, linear);
      const LinearShape shape = ShapeOf(config, linear);
      validator.Require(WeightName(path), {shape.rows, shape.cols});
      if (HasBias(config, linear)) {
        validator.Require(BiasName(path), {shape.rows});
      } else {
        validator.Refuse(BiasName(path));
      }
    }
  }
  validator.Require(WeightName(kFinalNormPath), {config.hidden});
}

}  // namespace

SourceModel SourceModel::Open(const std::filesystem::path& directory) {
  SourceModel model;
  model.directory_ = directory;
  model.config_ = ModelConfig::Open(directory);
  ModelConfig& config = model.config_;
  if (!config.quant_method.empty()) {
    throw Error("model.already_quantized", directory.string(),
                "is quantized with " + Quoted(config.quant_method),
                "name the full-precision model that it was made from");
  }
  model.checkpoint_ = Checkpoint::Open(directory);
  const Checkpoint& checkpoint = model.checkpoint_;
  const Validator validator(checkpoint, directory);

  const std::string embedding = WeightName(kEmbeddingPath);
  const std::string lm_head = WeightName(kLmHeadPath);
  const std::vector<int64_t> shape = {config.vocab, config.hidden};
  if (config.tied_embeddings) {
    // Either name will do.
    validator.Require(Find(checkpoint, embedding) == nullptr && Find(checkpoint, lm_head) != nullptr
                          ? lm_head
                          : embedding,
                      shape);
  } else {
    validator.Require(embedding, shape);
    validator.Require(lm_head, shape);
    // A file that stores both as one is tied, whatever config.json leaves unsaid.
    config.tied_embeddings = Find(checkpoint, embedding)->data == Find(checkpoint, lm_head)->data;
  }
  Validate(config, validator);
  return model;
}

Tensor SourceModel::Weight(int64_t layer, Linear linear) const {
  return *Find(checkpoint_, WeightName(LinearPath(layer, linear)));
}

Tensor SourceModel::Bias(int64_t layer, Linear linear) const {
  if (!HasBias(config_, linear)) return {};
  return *Find(checkpoint_, BiasName(LinearPath(layer, linear)));
}

Tensor SourceModel::NormWeight(int64_t layer, Norm norm) const {
  const Tensor* tensor = Find(checkpoint_, WeightName(NormPath(layer, norm)));
  FLATQUANT_CHECK(tensor != nullptr);  // q and k norms exist only with qk_norm
  return *tensor;
}

Tensor SourceModel::Embedding() const {
  const Tensor* tensor = Find(checkpoint_, WeightName(kEmbeddingPath));
  return tensor != nullptr ? *tensor : *Find(checkpoint_, WeightName(kLmHeadPath));
}

Tensor SourceModel::FinalNorm() const { return *Find(checkpoint_, WeightName(kFinalNormPath)); }

Tensor SourceModel::LmHead() const {
  return config_.tied_embeddings ? Embedding() : *Find(checkpoint_, WeightName(kLmHeadPath));
}

void SourceModel::Visit(
    const std::function<void(const std::string& name, const Tensor&)>& visitor) const {
  visitor(WeightName(kEmbeddingPath), Embedding());
  const auto visit_norm = [&](int64_t layer, Norm norm) {
    visitor(WeightName(NormPath(layer, norm)), NormWeight(layer, norm));
  };
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    visit_norm(layer, Norm::kInput);
    for (Linear linear : kLinears) {
      if (linear == Linear::kO && config_.qk_norm) {
        visit_norm(layer, Norm::kQ);
        visit_norm(layer, Norm::kK);
      }
      if (linear == Linear::kGate) visit_norm(layer, Norm::kPostAttention);
      const std::string path = LinearPath(layer, linear);
      visitor(WeightName(path), Weight(layer, linear));
      if (HasBias(config_, linear)) visitor(BiasName(path), Bias(layer, linear));
    }
  }
  visitor(WeightName(kFinalNormPath), FinalNorm());
  if (!config_.tied_embeddings) visitor(WeightName(kLmHeadPath), LmHead());
}

}  // namespace flatquant
