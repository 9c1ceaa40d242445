#include "flatquant/compress/import_transforms.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/safetensors.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/transforms_file.h"

namespace flatquant::compress {
namespace {

constexpr const char* kHint = "pass the transforms.safetensors that was written for this model";

class Reader {
 public:
  Reader(const std::filesystem::path& file, const ModelConfig& config, at::Device device)
      : file_(file.string()), config_(config), device_(device) {
    SafetensorsFile opened = OpenSafetensors(file);
    CheckMetadata(opened.metadata);
    for (auto& [name, tensor] : opened.tensors) tensors_.emplace(name, std::move(tensor));
  }

  std::vector<BlockParameters> Blocks() {
    std::vector<BlockParameters> blocks;
    for (int64_t layer = 0; layer < config_.layers; ++layer) blocks.push_back(Block(layer));
    if (tensors_.empty()) return blocks;
    throw Error("transforms.unexpected", file_,
                "tensor " + Quoted(tensors_.begin()->first) + " has no place in this model", kHint);
  }

 private:
  void CheckMetadata(const std::map<std::string, std::string, std::less<>>& metadata) const {
    const auto value = [&metadata](const char* key) {
      const auto found = metadata.find(key);
      return found == metadata.end() ? std::string() : found->second;
    };
    if (value("format") != kTransformsFormat) {
      throw Error("transforms.bad_format", file_, "does not say that it holds transforms",
                  "pass a file that --export-transforms or 'quantize' wrote");
    }
    if (value("version") != kTransformsVersion) {
      throw Error(
          "transforms.newer_version", file_,
          "has version " + Quoted(value("version")) + ", this program knows " + kTransformsVersion,
          "use the program that wrote it, or a newer one");
    }
    if (value("layers") != std::to_string(config_.layers)) {
      throw Error("transforms.layers", file_,
                  fmt::format("is for a model of {} layers, this one has {}",
                              Quoted(value("layers")), config_.layers),
                  kHint);
    }
  }

  // Takes the tensor of this name out of the file's; undefined where there is none.
  Tensor Take(const std::string& name) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) return {};
    Tensor tensor = std::move(found->second);
    tensors_.erase(found);
    if (tensor.dtype != DType::kF32) WrongShape(name, tensor, "floats (F32)");
    return tensor;
  }

  [[noreturn]] void WrongShape(const std::string& name, const Tensor& tensor,
                               const std::string& wanted) const {
    throw Error("transforms.wrong_shape", file_,
                fmt::format("tensor '{}' is {} {}, this model needs {}", name,
                            DTypeName(tensor.dtype), tensor.ShapeString(), wanted),
                kHint);
  }

  [[noreturn]] void NotFinite(const std::string& name) const {
    throw Error("transforms.not_finite", file_, "tensor '" + name + "' holds NaN or infinity",
                "the file is damaged; write it again");
  }

  at::Tensor Finite(const std::string& name, const Tensor& tensor) const {
    at::Tensor values = ToTorch(tensor, at::kFloat, device_);
    if (!at::isfinite(values).all().item<bool>()) NotFinite(name);
    return values;
  }

  // A square matrix whose order divides n.
  InvertibleMatrix Matrix(const std::string& name, int64_t n) {
    const Tensor tensor = Take(name);
    if (!tensor.defined()) return {};
    const bool fits = tensor.shape.size() == 2 && tensor.shape[0] == tensor.shape[1] &&
                      tensor.shape[0] > 0 && n % tensor.shape[0] == 0;
    if (!fits) WrongShape(name, tensor, fmt::format("a square matrix that divides {}", n));
    return InvertibleMatrix::Fixed(Finite(name, tensor), fmt::format("{}: '{}'", file_, name));
  }

  // The same, of order n.
  InvertibleMatrix WholeMatrix(const std::string& name, int64_t n) {
    const auto found = tensors_.find(name);
    if (found != tensors_.end() && found->second.shape != std::vector<int64_t>{n, n}) {
      WrongShape(name, found->second, fmt::format("[{}, {}]", n, n));
    }
    return Matrix(name, n);
  }

  // [n, 2] logits as two columns [n, 1]; infinity is no clip.
  std::pair<at::Tensor, at::Tensor> Logits(const std::string& name, const Tensor& tensor,
                                           int64_t rows) const {
    const at::Tensor pairs = ToTorch(tensor, at::kFloat, device_).view({rows, 2});
    const bool are_logits =
        at::logical_or(at::isfinite(pairs), at::isposinf(pairs)).all().item<bool>();
    if (!are_logits) NotFinite(name);
    return {pairs.narrow(1, 0, 1).contiguous(), pairs.narrow(1, 1, 1).contiguous()};
  }

  ClipLogits CacheClip(const std::string& name) {
    const Tensor tensor = Take(name);
    if (!tensor.defined()) return {};
    if (tensor.shape != std::vector<int64_t>{2}) WrongShape(name, tensor, "[2]");
    const auto [max, min] = Logits(name, tensor, 1);
    return {max.view({1}), min.view({1})};
  }

  void ReadSite(const std::string& block, Site which, BlockParameters::SiteParameters* site) {
    const int64_t width = SiteWidth(config_, which);
    const std::string path = block + std::string(SiteName(which));
    if (which == Site::kAttnOut) {  // the head_dim half is V's transform
      site->left = WholeMatrix(path + ".transform_left", config_.heads);
    } else {
      site->left = Matrix(path + ".transform_left", width);
      site->right = Matrix(path + ".transform_right", width);
      const int64_t left = site->left.size();
      const int64_t right = site->right.size();
      if (left > 0 && right > 0 && (left > width / right || left * right != width)) {
        throw Error("transforms.wrong_shape", file_,
                    fmt::format("the matrices of '{}', {} and {}, do not make up its width {}",
                                path, left, right, width),
                    kHint);
      }
      ReadDiagonal(path + ".diagonal", width, &site->diagonal);
    }
    const std::string clips = path + ".act_clip_logits";
    const Tensor tensor = Take(clips);
    if (!tensor.defined()) return;
    const auto linears = static_cast<int64_t>(LinearsOf(which).size());
    const bool fits = tensor.shape.size() == 2 && tensor.shape[1] == 2 &&
                      (tensor.shape[0] == 1 || tensor.shape[0] == linears);
    if (!fits) WrongShape(clips, tensor, fmt::format("[1, 2] or [{}, 2]", linears));
    const auto [max, min] = Logits(clips, tensor, tensor.shape[0]);
    site->act_clips.clear();
    for (int64_t i = 0; i < tensor.shape[0]; ++i) {
      site->act_clips.push_back({max.select(0, i), min.select(0, i)});
    }
  }

  void ReadDiagonal(const std::string& name, int64_t width, at::Tensor* diagonal) {
    const Tensor tensor = Take(name);
    if (!tensor.defined()) return;
    if (tensor.shape != std::vector<int64_t>{width}) {
      WrongShape(name, tensor, fmt::format("[{}]", width));
    }
    *diagonal = Finite(name, tensor);
    if (!(*diagonal == 0).any().item<bool>()) return;
    throw Error("transforms.singular", file_, "tensor '" + name + "' holds a zero",
                "the file is damaged; write it again");
  }

  BlockParameters Block(int64_t layer) {
    const std::string block = fmt::format("model.layers.{}.", layer);
    BlockParameters parameters;
    for (const Site which : kSites) ReadSite(block, which, &parameters.site(which));
    for (const Linear which : kLinears) {
      const std::string name = LinearPath(layer, which) + ".weight_clip_logits";
      const Tensor tensor = Take(name);
      if (!tensor.defined()) continue;
      const int64_t rows = ShapeOf(config_, which).rows;
      if (tensor.shape != std::vector<int64_t>{rows, 2}) {
        WrongShape(name, tensor, fmt::format("[{}, 2]", rows));
      }
      const auto [max, min] = Logits(name, tensor, rows);
      parameters.weight_clips[static_cast<size_t>(which)] = {max, min};
    }
    parameters.key = WholeMatrix(block + "kv_cache.k_transform", config_.head_dim);
    parameters.value = WholeMatrix(block + "kv_cache.v_transform", config_.head_dim);
    parameters.k_clip = CacheClip(block + "kv_cache.k_clip_logits");
    parameters.v_clip = CacheClip(block + "kv_cache.v_clip_logits");
    return parameters;
  }

  std::string file_;
  const ModelConfig& config_;
  at::Device device_;
  std::map<std::string, Tensor> tensors_;  // those that no block has taken yet
};

}  // namespace

std::vector<BlockParameters> ReadTransforms(const std::filesystem::path& file,
                                            const ModelConfig& config, at::Device device) {
  return Reader(file, config, device).Blocks();
}

}  // namespace flatquant::compress
