#include "flatquant/compress/import_pth.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/pth_reader.h"
#include "flatquant/compress/import_transforms.h"
#include "flatquant/compress/original_names.h"
#include "flatquant/compress/tensor_bridge.h"

namespace flatquant::compress {
namespace {

// Largest |P Q^T - 1| of a matrix P and its stored inverse transpose Q. Both were
// rounded to float32 or, in some files, float16 (2^-11 per element); a Q of
// another convention misses by about 1.
constexpr double kInverseTolerance = 0.05;

class Importer {
 public:
  Importer(const std::filesystem::path& file, const ModelConfig& config, at::Device device)
      : file_(file.string()),
        config_(config),
        device_(device),
        tensors_(PthFile::Open(file).Tensors()) {
    CheckLayers();
  }

  BlockParameters Block(int64_t layer) const {
    BlockParameters block;
    for (const auto& [site, transform] : kKronSites) ReadKronSite(layer, site, transform, &block);
    block.site(Site::kAttnOut).left = ReadMatrix(layer, kHeadTransform, config_.heads);
    block.key = ReadMatrix(layer, kKeyTransform, config_.head_dim);
    block.value = ReadMatrix(layer, kValueTransform, config_.head_dim);
    for (const Linear which : kLinears) {
      block.weight_clips[static_cast<size_t>(which)] =
          ReadClip(layer, ModuleOf(which) + ".clip_factor_w", {ShapeOf(config_, which).rows, 1});
    }
    for (const Site site : kSites) {
      std::vector<ClipLogits> clips;
      for (const Linear which : LinearsOf(site)) {
        clips.push_back(ReadClip(layer, ModuleOf(which) + ".act_quantizer.clip_factor_a", {1}));
      }
      block.site(site).act_clips = std::move(clips);
    }
    block.k_clip = ReadClip(layer, "self_attn.k_cache_quantizer.clip_factor_a", {1});
    block.v_clip = ReadClip(layer, "self_attn.v_cache_quantizer.clip_factor_a", {1});
    return block;
  }

 private:
  // Keys are "LAYER.name"; the layers must be exactly the model's.
  void CheckLayers() {
    std::set<std::string> layers;
    for (const auto& [name, tensor] : tensors_) {
      const size_t dot = name.find('.');
      layers.insert(name.substr(0, dot));
      if (dot != std::string::npos) names_.insert(name.substr(dot + 1));
    }
    std::set<std::string> expected;
    for (int64_t layer = 0; layer < config_.layers; ++layer) {
      expected.insert(std::to_string(layer));
    }
    for (const std::string& layer : expected) {
      if (layers.contains(layer)) continue;
      throw Error("transforms.layers", file_,
                  fmt::format("has nothing for layer {} of the model's {}", layer, config_.layers),
                  "pass the flat_matrices.pth that was learned on this model");
    }
    for (const std::string& layer : layers) {
      if (expected.contains(layer)) continue;
      throw Error("transforms.layers", file_,
                  fmt::format("has an entry '{}', and the model has layers 0 to {}", layer,
                              config_.layers - 1),
                  "pass the flat_matrices.pth that was learned on this model");
    }
  }

  // Whether any layer has this entry: then all must have it.
  bool Has(const std::string& name) const { return names_.contains(name); }

  at::Tensor Read(int64_t layer, const std::string& name, const std::vector<int64_t>& shape) const {
    const std::string key = fmt::format("{}.{}", layer, name);
    const auto found = tensors_.find(key);
    if (found == tensors_.end()) {
      throw Error("transforms.missing", file_, "there is no tensor '" + key + "'",
                  "the file is incomplete; save the learned matrices again");
    }
    const Tensor& tensor = found->second;
    TensorView expected;
    expected.shape = shape;
    if (tensor.shape != shape || !IsFloat(tensor.dtype)) {
      throw Error(
          "transforms.wrong_shape", file_,
          fmt::format("tensor '{}' is {} {}, this model needs floats {}", key,
                      DTypeName(tensor.dtype), tensor.ShapeString(), expected.ShapeString()),
          "pass the flat_matrices.pth that was learned on this model");
    }
    at::Tensor values = ToTorch(tensor, at::kFloat, device_);
    if (!at::isfinite(values).all().item<bool>()) {
      throw Error("transforms.not_finite", file_, "tensor '" + key + "' holds NaN or infinity",
                  "its training diverged; train again with a lower learning rate");
    }
    return values;
  }

  // One matrix with its inverse transpose, which must belong to it.
  InvertibleMatrix ReadPair(int64_t layer, const std::string& matrix_name,
                            const std::string& inverse_name, int64_t n) const {
    if (!Has(matrix_name)) return {};
    const at::Tensor matrix = Read(layer, matrix_name, {n, n}).to(at::kDouble);
    if (Has(inverse_name)) {
      const at::Tensor inverse = Read(layer, inverse_name, {n, n}).to(at::kDouble);
      const at::Tensor difference = at::matmul(matrix, inverse.t()) - at::eye(n, matrix.options());
      if (difference.abs().max().item<double>() > kInverseTolerance) {
        throw Error("transforms.bad_inverse", file_,
                    fmt::format("'{0}.{1}' is not the inverse transpose of '{0}.{2}'", layer,
                                inverse_name, matrix_name),
                    "the file is damaged or of another version; save the matrices again");
      }
    }
    return InvertibleMatrix::Fixed(matrix, fmt::format("{}: '{}.{}'", file_, layer, matrix_name));
  }

  InvertibleMatrix ReadMatrix(int64_t layer, std::string_view transform, int64_t n) const {
    const std::string name(transform);
    return ReadPair(layer, name + ".matrix", name + ".matrix_inv_t", n);
  }

  void ReadKronSite(int64_t layer, Site site, std::string_view transform,
                    BlockParameters* block) const {
    const std::string name(transform);
    const int64_t width = SiteWidth(config_, site);
    const KronShape shape = KronFactors(width);
    BlockParameters::SiteParameters& chosen = block->site(site);
    chosen.left = ReadPair(layer, name + ".matrix_left", name + ".matrix_left_inv", shape.left);
    chosen.right = ReadPair(layer, name + ".matrix_right", name + ".matrix_right_inv", shape.right);
    if (!Has(name + ".diag_scale")) return;
    chosen.diagonal = Read(layer, name + ".diag_scale", {width});
    if ((chosen.diagonal == 0).any().item<bool>()) {
      throw Error("transforms.singular", file_,
                  fmt::format("tensor '{}.{}.diag_scale' holds a zero", layer, name),
                  "use the matrices of a finished calibration");
    }
  }

  // name + "_max" and "_min".
  ClipLogits ReadClip(int64_t layer, const std::string& name,
                      const std::vector<int64_t>& shape) const {
    ClipLogits clip;
    if (Has(name + "_max")) clip.max = Read(layer, name + "_max", shape);
    if (Has(name + "_min")) clip.min = Read(layer, name + "_min", shape);
    return clip;
  }

  std::string file_;
  const ModelConfig& config_;
  at::Device device_;
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::set<std::string> names_;  // without the layer
};

}  // namespace

LearnedParameters LearnedParameters::Open(const std::filesystem::path& file,
                                          const ModelConfig& config, at::Device device) {
  LearnedParameters learned;
  if (file.extension() == ".safetensors") {
    learned.blocks_ = ReadTransforms(file, config, device);
    return learned;
  }
  const Importer importer(file, config, device);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    learned.blocks_.push_back(importer.Block(layer));
  }
  return learned;
}

}  // namespace flatquant::compress
