#include "flatquant/compress/import_original.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/compress/original_names.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/transform.h"
#include "flatquant/model/network.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using compress::FromTorch;
using compress::InvertibleMatrix;
using compress::KronFactors;
using compress::KronShape;
using compress::ModuleOf;
using compress::ToTorch;

constexpr const char* kHint = "pass the checkpoint that --quantized_save wrote, and its base model";
constexpr size_t kMaxConfigBytes = size_t{1} << 20;

class Importer {
 public:
  Importer(const fs::path& checkpoint, const ModelConfig& config, const Scheme& scheme)
      : where_(checkpoint.string()),
        config_(config),
        scheme_(scheme),
        checkpoint_(Checkpoint::Open(checkpoint)) {}

  PackedModel Run() {
    PackedModel packed;
    packed.config = config_;
    packed.scheme = scheme_;
    for (int64_t layer = 0; layer < config_.layers; ++layer) packed.blocks.push_back(Block(layer));
    const std::vector<int64_t> table = {config_.vocab, config_.hidden};
    packed.embedding = Take(std::string(kEmbeddingPath) + ".weight", table);
    packed.final_norm = Floats(std::string(kFinalNormPath) + ".weight", {config_.hidden});
    if (!config_.tied_embeddings) {
      packed.lm_head = Take(std::string(kLmHeadPath) + ".weight", table);
    }
    for (const auto& [name, tensor] : checkpoint_.tensors()) {
      if (seen_.contains(name)) continue;
      throw Error("original.unexpected_tensor", where_,
                  "tensor " + Quoted(name) + " has no place in this model", kHint);
    }
    packed.provenance = {{"method", "flatquant"}, {"weights", "imported"}};
    return packed;
  }

 private:
  const Tensor* Find(const std::string& name) {
    const Tensor* tensor = checkpoint_.Find(name);
    if (tensor != nullptr) seen_.insert(name);
    return tensor;
  }

  [[noreturn]] void Wrong(const std::string& name, const Tensor& tensor,
                          const std::string& wanted) const {
    throw Error("original.wrong_tensor", where_,
                fmt::format("tensor '{}' is {} {}, this model needs {}", name,
                            DTypeName(tensor.dtype), tensor.ShapeString(), wanted),
                kHint);
  }

  const Tensor& Need(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor* tensor = Find(name);
    if (tensor == nullptr) {
      throw Error("original.missing_tensor", where_, "there is no tensor '" + name + "'", kHint);
    }
    if (tensor->shape != shape) Wrong(name, *tensor, fmt::format("[{}]", fmt::join(shape, ", ")));
    return *tensor;
  }

  // A float tensor in its own element type; those of the packed format's tables.
  Tensor Take(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor& tensor = Need(name, shape);
    const bool fits =
        tensor.dtype == DType::kF32 || tensor.dtype == DType::kF16 || tensor.dtype == DType::kBF16;
    if (!fits) Wrong(name, tensor, "floats");
    return tensor;
  }

  // Finite values, float64.
  at::Tensor Values(const std::string& name, const std::vector<int64_t>& shape) {
    const Tensor tensor = Take(name, shape);
    at::Tensor values = ToTorch(tensor, at::kDouble, at::Device(at::kCPU));
    if (at::isfinite(values).all().item<bool>()) return values;
    throw Error("original.bad_value", where_, "tensor '" + name + "' holds NaN or infinity",
                "quantize the model again");
  }

  Tensor Floats(const std::string& name, const std::vector<int64_t>& shape) {
    return FromTorch(Values(name, shape).to(at::kFloat));
  }

  // The factor of a logit; 1 where the model was made without.
  float Factor(const std::string& name) {
    if (checkpoint_.Find(name) == nullptr) return 1.0f;
    return Values(name, {1}).sigmoid().item<float>();
  }

  Clip ReadClip(const std::string& prefix) {
    return {Factor(prefix + "clip_factor_a_max"), Factor(prefix + "clip_factor_a_min")};
  }

  // A matrix that may be missing, in a model that was made without transforms.
  Tensor Matrix(const std::string& name, int64_t n) {
    return checkpoint_.Find(name) == nullptr ? Tensor() : Floats(name, {n, n});
  }

  // Folded already: known, and not looked at.
  void Skip(const std::string& name) { Find(name); }

  void CheckSymmetric(const std::string& quantizer, int64_t rows) {
    const std::string zero = quantizer + ".zero";
    if (checkpoint_.Find(zero) != nullptr && (Values(zero, {rows, 1}) != 0).any().item<bool>()) {
      throw Error("original.asymmetric", where_,
                  "'" + zero + "' holds other values than 0: its weights are asymmetric",
                  "quantize without --w_asym");
    }
    const std::string maxq = quantizer + ".maxq";
    const Tensor* largest = Find(maxq);
    if (largest == nullptr) return;
    if (!largest->shape.empty() || IsFloat(largest->dtype)) Wrong(maxq, *largest, "an integer");
    const int64_t value = ToTorch(*largest, at::kLong, at::Device(at::kCPU)).item<int64_t>();
    if (value == (int64_t{1} << (scheme_.weight_bits - 1)) - 1) return;
    throw Error(
        "original.bits", where_,
        fmt::format("'{}' is {}, which is not that of {} bits", maxq, value, scheme_.weight_bits),
        "give --scheme the widths that the checkpoint was made with");
  }

  PackedLinear ReadLinear(int64_t layer, Linear which) {
    const LinearShape shape = ShapeOf(config_, which);
    const std::string path = LinearPath(layer, which);
    const std::string quantizer = "quantizer." + path + ".linear";
    PackedLinear linear;
    linear.bits = scheme_.weight_bits;
    const std::string name = path + ".linear.weight";
    linear.weight = Need(name, {shape.rows, (shape.cols + 1) / 2});
    if (linear.weight.dtype != DType::kU8) Wrong(name, linear.weight, "codes (U8)");
    linear.scale =
        FromTorch(Values(quantizer + ".scale", {shape.rows, 1}).to(at::kFloat).view({shape.rows}));
    CheckSymmetric(quantizer, shape.rows);
    if (HasBias(config_, which)) linear.bias = Floats(path + ".linear.bias", {shape.rows});
    Skip(path + ".clip_factor_w_max");
    Skip(path + ".clip_factor_w_min");
    return linear;
  }

  void ReadSite(int64_t layer, Site which, PackedSite* site) {
    site->act_bits = scheme_.act_bits;
    site->clips.clear();
    for (const Linear linear : LinearsOf(which)) {
      site->clips.push_back(ReadClip(LinearPath(layer, linear) + ".act_quantizer."));
    }
    if (site->act_bits == 16) site->clips = {Clip{}};
  }

  PackedBlock Block(int64_t layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    PackedBlock block;
    block.input_norm = Floats(NormPath(layer, Norm::kInput) + ".weight", {config_.hidden});
    block.post_attention_norm =
        Floats(NormPath(layer, Norm::kPostAttention) + ".weight", {config_.hidden});
    if (config_.qk_norm) {
      block.q_norm = Floats(NormPath(layer, Norm::kQ) + ".weight", {config_.head_dim});
      block.k_norm = Floats(NormPath(layer, Norm::kK) + ".weight", {config_.head_dim});
    }
    for (const Linear which : kLinears) block.linear(which) = ReadLinear(layer, which);
    for (const Site which : kSites) ReadSite(layer, which, &block.site(which));
    for (const auto& [which, transform] : compress::kKronSites) {
      const KronShape shape = KronFactors(SiteWidth(config_, which));
      const std::string name = prefix + std::string(transform);
      block.site(which).left = Matrix(name + ".matrix_left", shape.left);
      block.site(which).right = Matrix(name + ".matrix_right", shape.right);
      for (const char* folded : {".matrix_left_inv", ".matrix_right_inv", ".diag_scale"}) {
        Skip(name + folded);
      }
    }
    block.site(Site::kAttnOut).left =
        Matrix(prefix + std::string(compress::kHeadTransform) + ".matrix", config_.heads);
    for (const std::string_view name :
         {compress::kHeadTransform, compress::kKeyTransform, compress::kValueTransform}) {
      Skip(prefix + std::string(name) + ".matrix_inv_t");
    }
    Skip(prefix + std::string(compress::kValueTransform) + ".matrix");
    ReadCache(prefix, &block.cache);
    return block;
  }

  void ReadCache(const std::string& prefix, PackedCache* cache) {
    cache->k_bits = scheme_.k_bits;
    cache->v_bits = scheme_.v_bits;
    if (cache->k_bits < 16) cache->k_clip = ReadClip(prefix + "self_attn.k_cache_quantizer.");
    if (cache->v_bits < 16) cache->v_clip = ReadClip(prefix + "self_attn.v_cache_quantizer.");
    const std::string key = prefix + std::string(compress::kKeyTransform) + ".matrix";
    cache->k_transform = Matrix(key, config_.head_dim);
    if (!cache->k_transform.defined()) return;
    const InvertibleMatrix matrix = InvertibleMatrix::Fixed(
        ToTorch(cache->k_transform, at::kDouble, at::Device(at::kCPU)), where_ + ": '" + key + "'");
    cache->q_transform = FromTorch(matrix.Evaluate(at::kDouble).inverse_transpose.to(at::kFloat));
  }

  std::string where_;
  const ModelConfig& config_;
  const Scheme scheme_;
  Checkpoint checkpoint_;
  std::set<std::string, std::less<>> seen_;
};

// What the config.json of a published checkpoint says must be what was asked for.
void CheckConfig(const fs::path& checkpoint, const Scheme& scheme) {
  const fs::path file = checkpoint / "config.json";
  std::error_code ignored;
  if (!fs::exists(file, ignored)) return;
  nlohmann::json json;
  if (ParseStrictJson(ReadFile(file, kMaxConfigBytes), &json)) return;  // no claim that we know
  if (!json.is_object() || !json.contains("quantization_config")) return;
  const nlohmann::json& claims = json["quantization_config"];
  const auto expect = [&](const char* key, int bits) {
    if (!claims.is_object() || !claims.contains(key) || claims[key] == bits) return;
    throw Error("original.bits", file.string(),
                fmt::format("'{}' is {}, and the scheme {} has {}", key, claims[key].dump(),
                            scheme.Name(), bits),
                "give --scheme the widths that the checkpoint was made with");
  };
  expect("w_bits", scheme.weight_bits);
  expect("a_bits", scheme.act_bits);
  expect("kv_bits", scheme.k_bits);
  expect("kv_bits", scheme.v_bits);
  if (claims.is_object() && claims.contains("kv_is_symmetric") &&
      claims["kv_is_symmetric"] == true) {
    throw Error("original.bits", file.string(), "says that its KV cache is symmetric",
                "quantize with --k_asym --v_asym: the packed format has no symmetric cache");
  }
}

}  // namespace

PackedModel ImportOriginal(const fs::path& checkpoint, const ModelConfig& config,
                           const Scheme& scheme) {
  if (scheme.weight_bits > 4) {
    throw Error("original.bits", "scheme " + scheme.Name(),
                "has weights that the original's real-quantized checkpoints cannot hold",
                "they have 4 bits or fewer");
  }
  CheckConfig(checkpoint, scheme);
  return Importer(checkpoint, config, scheme).Run();
}

}  // namespace flatquant
