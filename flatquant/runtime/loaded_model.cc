#include "flatquant/runtime/loaded_model.h"

#include <cstring>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/base/half.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"

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
  const int64_t scales = shape.rows * GroupCount(shape.cols, linear.group_size);
  FLATQUANT_CHECK(linear.bits == 16 || linear.scale.elements() == static_cast<uint64_t>(scales));
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

// A weight with several scales per row, which no kernel takes, as floats.
PackedLinear WithoutGroups(const PackedLinear& linear, LinearShape shape, GemmFloatMath math,
                           ThreadPool& pool) {
  const auto cols = static_cast<size_t>(shape.cols);
  const size_t elements = static_cast<size_t>(shape.rows) * cols;
  const bool halves = math == GemmFloatMath::kBF16;  // what the products round weights to
  std::vector<float> floats(halves ? 0 : elements);
  std::vector<uint16_t> bf16(halves ? elements : 0);
  constexpr size_t kRowsAtLeast = 16;  // some 10 us of work for a thread
  pool.ParallelFor(static_cast<size_t>(shape.rows), kRowsAtLeast, [&](size_t begin, size_t end) {
    std::vector<float> row(halves ? cols : 0);
    for (size_t r = begin; r < end; ++r) {
      float* out = halves ? row.data() : floats.data() + r * cols;
      DequantizeRow(linear, static_cast<int64_t>(r), shape.cols, out);
      if (halves) FloatToBF16(out, bf16.data() + r * cols, cols);
    }
  });
  PackedLinear plain;
  const std::vector<int64_t> sizes = {shape.rows, shape.cols};
  plain.weight = halves ? Tensor::Own(DType::kBF16, sizes, std::move(bf16))
                        : Tensor::Floats(sizes, std::move(floats));
  plain.bias = linear.bias;
  return plain;
}

// The pages of a mapped file that `linear` came from are given back once it is in its
// own layout, so that source and copy are never both in memory whole.
LoadedLinear LoadLinear(const PackedLinear& linear, LinearShape shape, int act_bits,
                        GemmFloatMath math, ThreadPool& pool) {
  CheckShape(linear, shape);
  LoadedLinear loaded;
  loaded.rows = shape.rows;
  if (linear.is_grouped()) {
    const PackedLinear plain = WithoutGroups(linear, shape, math, pool);
    loaded.weights = LoadFloats(plain.weight, &plain, shape, math, pool);
  } else if (linear.bits > 8 || act_bits > 8 || shape.cols > kGemmIntMaxCols) {
    loaded.weights = LoadFloats(linear.weight, &linear, shape, math, pool);
  } else {
    GemmIntSource source;
    source.bits = linear.bits;
    source.rows = shape.rows;
    source.cols = shape.cols;
    source.weight = linear.weight.data;
    source.scale = FloatData(linear.scale);
    source.bias = FloatData(linear.bias);
    loaded.weights = PackGemmInt(source, pool);
  }
  MappedFile::ReleasePages(linear.weight.data, linear.weight.bytes());
  return loaded;
}

KronClip ToKronClip(Clip clip) { return {clip.max, clip.min}; }

Flattening LoadFlattening(const PackedSite& site, int64_t width) {
  std::vector<FlattenColumn> columns;
  for (const ExtraColumn& column : UnpackExtraColumns(site.extra_columns)) {
    columns.push_back({column.channel, column.piece});
  }
  return MakeFlattening(width, site.act_bits, site.act_scale.ToFloat()[0], columns);
}

LoadedSite LoadSite(const PackedSite& site, int64_t width, size_t linears) {
  LoadedSite loaded;
  loaded.act_bits = site.act_bits;
  if (site.is_flattened()) {
    loaded.clips = {KronClip{}};
    loaded.flattening = LoadFlattening(site, width);
    return loaded;
  }
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
        LoadLinear(block.linear(which), StoredShape(config, block, which),
                   block.site(SiteOf(which)).act_bits, math, pool);
  }
  loaded.cache = LoadCache(block.cache, config.head_dim);
  return loaded;
}

uint64_t BytesOf(const LoadedLinear& linear) {
  return std::visit([](const auto& weights) { return weights.bytes(); }, linear.weights);
}

// The output projection and what precedes it: a site without a transform.
void LoadHead(const PackedModel& model, GemmFloatMath math, ThreadPool& pool, LoadedModel* loaded) {
  const ModelConfig& config = model.config;
  loaded->head_site.act_bits = model.head.act_bits;
  loaded->head_site.clips = {KronClip{}};
  loaded->head_site.transform = PackKronTransform(1, nullptr, config.hidden, nullptr);
  loaded->lm_head =
      LoadLinear(HeadLinear(model), {config.vocab, config.hidden}, model.head.act_bits, math, pool);
}

// The table as the file has it, but for doubles, which no kernel reads.
PackedLinear LoadEmbedding(const PackedModel& model) {
  PackedLinear table = EmbeddingTable(model);
  if (table.weight.dtype == DType::kF64) {
    table.weight = Tensor::Floats(table.weight.shape, table.weight.ToFloat());
  }
  return table;
}

}  // namespace

uint64_t LoadedModel::bytes() const {
  const uint64_t scales = embedding.scale.defined() ? embedding.scale.bytes() : 0;
  return bytes_per_pass() + embedding.weight.bytes() + scales;
}

uint64_t LoadedModel::bytes_per_pass() const {
  return block_bytes() + BytesOf(lm_head) + final_norm.size() * sizeof(float);
}

uint64_t LoadedModel::block_bytes() const {
  uint64_t total = 0;
  for (const LoadedBlock& block : blocks) {
    for (const LoadedLinear& linear : block.linears) total += BytesOf(linear);
    for (const LoadedSite& site : block.sites) total += site.bytes();
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
  loaded.math = math;
  const ModelConfig& config = loaded.config;
  FLATQUANT_CHECK(model.blocks.size() == static_cast<size_t>(config.layers));
  for (PackedBlock& block : model.blocks) {
    loaded.blocks.push_back(LoadBlock(block, config, math, pool));
    block = {};  // in-memory weights are not needed twice
  }
  LoadHead(model, math, pool, &loaded);
  loaded.final_norm = LoadVector(model.final_norm, config.hidden);
  loaded.embedding = LoadEmbedding(model);
  loaded.rope_frequencies = RopeFrequencies(config.rope, config.head_dim);
  return loaded;
}

}  // namespace flatquant
