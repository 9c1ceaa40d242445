#include "flatquant/runtime/loaded_model.h"

#include <cstring>
#include <utility>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

AlignedBuffer<float> LoadVector(const Tensor& tensor, int64_t size) {
  if (!tensor.defined()) return {};
  FLATQUANT_CHECK(tensor.elements() == static_cast<uint64_t>(size));
  AlignedBuffer<float> vector(static_cast<size_t>(size));
  tensor.ToFloat(vector.data());
  return vector;
}

const std::byte* FloatData(const Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  FLATQUANT_CHECK(tensor.dtype == DType::kF32);
  return tensor.data;
}

void CheckShape(const PackedLinear& linear, LinearShape shape) {
  const int64_t cols = linear.bits <= 4 ? (shape.cols + 1) / 2 : shape.cols;
  FLATQUANT_CHECK(linear.weight.shape == (std::vector<int64_t>{shape.rows, cols}));
  FLATQUANT_CHECK(linear.bits == 16 ||
                  linear.scale.elements() == static_cast<uint64_t>(shape.rows));
  FLATQUANT_CHECK(!linear.bias.defined() ||
                  linear.bias.elements() == static_cast<uint64_t>(shape.rows));
}

FloatWeights LoadFloats(const Tensor& weight, const PackedLinear* linear, LinearShape shape,
                        GemmFloatMath math, ThreadPool& pool) {
  FloatWeightsSource source;
  source.dtype = weight.dtype;
  source.rows = shape.rows;
  source.cols = shape.cols;
  source.weight = weight.data;
  if (linear != nullptr) {
    source.bits = linear->bits;
    source.scale = FloatData(linear->scale);
    source.bias = FloatData(linear->bias);
  }
  return LoadFloatWeights(source, math, pool);
}

LoadedLinear LoadLinear(const PackedLinear& linear, LinearShape shape, int act_bits,
                        GemmFloatMath math, ThreadPool& pool) {
  CheckShape(linear, shape);
  LoadedLinear loaded;
  loaded.rows = shape.rows;
  if (linear.bits > 8 || act_bits > 8 || shape.cols > kGemmIntMaxCols) {
    loaded.weights = LoadFloats(linear.weight, &linear, shape, math, pool);
    return loaded;
  }
  GemmIntSource source;
  source.bits = linear.bits;
  source.rows = shape.rows;
  source.cols = shape.cols;
  source.weight = linear.weight.data;
  source.scale = FloatData(linear.scale);
  source.bias = FloatData(linear.bias);
  loaded.weights = PackGemmInt(source, pool);
  return loaded;
}

KronClip ToKronClip(Clip clip) { return {clip.max, clip.min}; }

LoadedSite LoadSite(const PackedSite& site, int64_t width, size_t linears) {
  LoadedSite loaded;
  loaded.act_bits = site.act_bits;
  FLATQUANT_CHECK(site.clips.size() == 1 || site.clips.size() == linears);
  for (Clip clip : site.clips) loaded.clips.push_back(ToKronClip(clip));
  int64_t left = site.left.defined() ? site.left.shape[0] : 0;
  int64_t right = site.right.defined() ? site.right.shape[0] : 0;
  if (left == 0 && right == 0) left = 1;
  if (left == 0) left = width / right;
  if (right == 0) right = width / left;
  FLATQUANT_CHECK(left * right == width);
  loaded.transform = PackKronTransform(left, FloatData(site.left), right, FloatData(site.right));
  return loaded;
}

LoadedCache LoadCache(const PackedCache& cache, int64_t head_dim) {
  LoadedCache loaded;
  loaded.k_bits = cache.k_bits;
  loaded.v_bits = cache.v_bits;
  loaded.k_clip = ToKronClip(cache.k_clip);
  loaded.v_clip = ToKronClip(cache.v_clip);
  loaded.has_k_transform = cache.k_transform.defined();
  loaded.has_q_transform = cache.q_transform.defined();
  loaded.k_transform = PackKronTransform(1, nullptr, head_dim, FloatData(cache.k_transform));
  loaded.q_transform = PackKronTransform(1, nullptr, head_dim, FloatData(cache.q_transform));
  return loaded;
}

LoadedBlock LoadBlock(const PackedBlock& block, const ModelConfig& config, GemmFloatMath math,
                      ThreadPool& pool) {
  LoadedBlock loaded;
  loaded.input_norm = LoadVector(block.input_norm, config.hidden);
  loaded.post_attention_norm = LoadVector(block.post_attention_norm, config.hidden);
  if (config.qk_norm) {
    loaded.q_norm = LoadVector(block.q_norm, config.head_dim);
    loaded.k_norm = LoadVector(block.k_norm, config.head_dim);
  }
  for (Site site : kSites) {
    loaded.sites[static_cast<size_t>(site)] =
        LoadSite(block.site(site), SiteWidth(config, site), LinearsOf(site).size());
  }
  for (Linear which : kLinears) {
    loaded.linears[static_cast<size_t>(which)] =
        LoadLinear(block.linear(which), ShapeOf(config, which), block.site(SiteOf(which)).act_bits,
                   math, pool);
  }
  loaded.cache = LoadCache(block.cache, config.head_dim);
  return loaded;
}

}  // namespace

uint64_t LoadedModel::bytes() const {
  uint64_t total = embedding.bytes() + lm_head.bytes() + final_norm.size() * sizeof(float);
  for (const LoadedBlock& block : blocks) {
    for (const LoadedLinear& linear : block.linears) {
      total += std::visit([](const auto& weights) { return weights.bytes(); }, linear.weights);
    }
    for (const LoadedSite& site : block.sites) total += site.transform.bytes();
    total += block.cache.k_transform.bytes() + block.cache.q_transform.bytes();
    total += (block.input_norm.size() + block.post_attention_norm.size() + block.q_norm.size() +
              block.k_norm.size()) *
             sizeof(float);
  }
  return total;
}

LoadedModel LoadModel(PackedModel model, GemmFloatMath math, ThreadPool& pool) {
  LoadedModel loaded;
  loaded.config = model.config;
  const ModelConfig& config = loaded.config;
  FLATQUANT_CHECK(model.blocks.size() == static_cast<size_t>(config.layers));
  for (PackedBlock& block : model.blocks) {
    loaded.blocks.push_back(LoadBlock(block, config, math, pool));
    block = {};  // in-memory weights are not needed twice
  }
  const Tensor& lm_head = model.lm_head.defined() ? model.lm_head : model.embedding;
  loaded.lm_head = LoadFloats(lm_head, nullptr, {config.vocab, config.hidden}, math, pool);
  loaded.final_norm = LoadVector(model.final_norm, config.hidden);
  loaded.embedding = model.embedding.dtype == DType::kF64
                         ? Tensor::Floats(model.embedding.shape, model.embedding.ToFloat())
                         : model.embedding;
  loaded.rope_frequencies = RopeFrequencies(config.rope, config.head_dim);
  return loaded;
}

}  // namespace flatquant
