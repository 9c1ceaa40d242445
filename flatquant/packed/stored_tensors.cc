#include "flatquant/packed/stored_tensors.h"

#include <cmath>
#include <cstring>
#include <span>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

using Type = StoredTensor::Type;
using Values = StoredTensor::Values;
using Part = StoredTensor::Part;

// Lists the tensors of one StoredModel.
class Lister {
 public:
  explicit Lister(StoredModel* stored) : stored_(*stored), config_(stored->model.config) {}

  std::vector<StoredTensor> List() {
    PackedModel& model = stored_.model;
    FLATQUANT_CHECK(model.blocks.size() == stored_.grids.size() &&
                    model.blocks.size() == stored_.clips.size());
    if (config_.tied_embeddings) {
      Head(kEmbeddingPath, &model.embedding);
    } else {
      FloatTable(kEmbeddingPath, &model.embedding);
    }
    for (size_t i = 0; i < model.blocks.size(); ++i) Block(i);
    Norm(std::string(kFinalNormPath), config_.hidden, &model.final_norm);
    if (!config_.tied_embeddings) Head(kLmHeadPath, &model.lm_head);
    return std::move(list_);
  }

 private:
  void Add(std::string name, Type type, std::vector<int64_t> shape, Values values, Part part,
           Tensor* place) {
    StoredTensor slot;
    slot.name = std::move(name);
    slot.type = type;
    slot.shape = std::move(shape);
    slot.values = values;
    slot.part = part;
    slot.place = place;
    list_.push_back(std::move(slot));
  }

  void FloatTable(std::string_view path, Tensor* place) {
    Add(std::string(path) + ".weight", Type::kFloat, {config_.vocab, config_.hidden}, Values::kAny,
        Part::kOther, place);
  }

  // The output projection: lm_head, or the embedding that it is tied to.
  void Head(std::string_view path, Tensor* place) {
    PackedHead& head = stored_.model.head;
    if (head.bits == 16) return FloatTable(path, place);
    const std::string name(path);
    Add(name + ".weight", InNibbles(head.bits) ? Type::kU8 : Type::kI8,
        {config_.vocab, PackedRowBytes(head.bits, config_.hidden)}, Values::kAny, Part::kOther,
        place);
    Add(name + ".weight_scale", Type::kF32, {config_.vocab}, Values::kPositive, Part::kOther,
        &head.scale);
  }

  void Norm(std::string path, int64_t width, Tensor* place) {
    Add(std::move(path) + ".weight", Type::kF32, {width}, Values::kFinite, Part::kOther, place);
  }

  void Block(size_t index) {
    const auto layer = static_cast<int64_t>(index);
    PackedBlock& block = stored_.model.blocks[index];
    const BlockGrid& grid = stored_.grids[index];
    ClipTensors& clips = stored_.clips[index];
    Norm(NormPath(layer, Norm::kInput), config_.hidden, &block.input_norm);
    SiteAndLinears(layer, Site::kAttnIn, &block, grid, &clips);
    if (config_.qk_norm) {
      Norm(NormPath(layer, Norm::kQ), config_.head_dim, &block.q_norm);
      Norm(NormPath(layer, Norm::kK), config_.head_dim, &block.k_norm);
    }
    Cache(layer, grid.cache, &block.cache, &clips);
    SiteAndLinears(layer, Site::kAttnOut, &block, grid, &clips);
    Norm(NormPath(layer, Norm::kPostAttention), config_.hidden, &block.post_attention_norm);
    SiteAndLinears(layer, Site::kMlpIn, &block, grid, &clips);
    SiteAndLinears(layer, Site::kMlpOut, &block, grid, &clips);
  }

  void SiteAndLinears(int64_t layer, Site site, PackedBlock* block, const BlockGrid& grid,
                      ClipTensors* clips) {
    const SiteGrid& wanted = grid.sites[static_cast<size_t>(site)];
    const std::string path = LayerPath(layer) + std::string(SiteName(site));
    PackedSite& place = block->site(site);
    if (wanted.left > 0) Matrix(path + ".transform_left", wanted.left, &place.left);
    if (wanted.right > 0) Matrix(path + ".transform_right", wanted.right, &place.right);
    if (wanted.clips > 0) {
      Add(path + ".act_clip", Type::kF32, {wanted.clips, 2}, Values::kFraction, Part::kLinear,
          &clips->sites[static_cast<size_t>(site)]);
    }
    if (wanted.extra_columns) Flattening(path, SiteWidth(config_, site), wanted, &place);
    for (Linear linear : LinearsOf(site)) {
      LinearShape shape = ShapeOf(config_, linear);
      shape.cols += wanted.extra_columns.value_or(0);
      const size_t i = static_cast<size_t>(linear);
      OneLinear(layer, linear, shape, grid.weight_bits[i], grid.weight_groups[i],
                &block->linear(linear));
    }
  }

  void Flattening(const std::string& path, int64_t width, const SiteGrid& wanted,
                  PackedSite* place) {
    Add(path + ".act_scale", Type::kF32, {1}, Values::kPositive, Part::kLinear, &place->act_scale);
    if (*wanted.extra_columns == 0) return;
    Add(path + ".extra_columns", Type::kI32, {*wanted.extra_columns, 2}, Values::kColumns,
        Part::kLinear, &place->extra_columns);
    list_.back().site_width = width;
    list_.back().act_bits = wanted.act_bits;
  }

  void OneLinear(int64_t layer, Linear which, LinearShape shape, int bits, int64_t group_size,
                 PackedLinear* place) {
    const std::string path = LinearPath(layer, which);
    const Part part = bits == 16 ? Part::kFloatLinear : Part::kLinear;
    if (bits == 16) {
      Add(path + ".weight", Type::kFloat, {shape.rows, shape.cols}, Values::kAny, part,
          &place->weight);
    } else {
      Add(path + ".weight", InNibbles(bits) ? Type::kU8 : Type::kI8,
          {shape.rows, PackedRowBytes(bits, shape.cols)}, Values::kAny, part, &place->weight);
      std::vector<int64_t> scales = {shape.rows};
      if (group_size > 0) scales.push_back(GroupCount(shape.cols, group_size));
      Add(path + ".weight_scale", Type::kF32, std::move(scales), Values::kPositive, part,
          &place->scale);
    }
    if (HasBias(config_, which)) {
      Add(path + ".bias", Type::kF32, {shape.rows}, Values::kFinite, part, &place->bias);
    }
  }

  void Cache(int64_t layer, const CacheGrid& grid, PackedCache* place, ClipTensors* clips) {
    const std::string path = LayerPath(layer) + "kv_cache.";
    if (grid.transform) {
      Matrix(path + "k_transform", config_.head_dim, &place->k_transform);
      Matrix(path + "q_transform", config_.head_dim, &place->q_transform);
    }
    const auto clip = [&](const char* name, int bits, Tensor* tensor) {
      if (bits == 16) return;
      Add(path + name, Type::kF32, {2}, Values::kFraction, Part::kLinear, tensor);
    };
    clip("k_clip", grid.k_bits, &clips->k);
    clip("v_clip", grid.v_bits, &clips->v);
  }

  void Matrix(std::string name, int64_t order, Tensor* place) {
    Add(std::move(name), Type::kF32, {order, order}, Values::kFinite, Part::kLinear, place);
  }

  static std::string LayerPath(int64_t layer) {
    return "model.layers." + std::to_string(layer) + ".";
  }

  StoredModel& stored_;
  const ModelConfig& config_;
  std::vector<StoredTensor> list_;
};

bool TypeFits(Type type, DType dtype) {
  switch (type) {
    case Type::kF32:
      return dtype == DType::kF32;
    case Type::kFloat:
      return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
    case Type::kU8:
      return dtype == DType::kU8;
    case Type::kI8:
      return dtype == DType::kI8;
    case Type::kI32:
      break;
  }
  return dtype == DType::kI32;
}

std::string_view TypeText(Type type) {
  switch (type) {
    case Type::kF32:
      return "F32";
    case Type::kFloat:
      return "F32, F16 or BF16";
    case Type::kU8:
      return "U8 (nibbles)";
    case Type::kI8:
      return "I8";
    case Type::kI32:
      break;
  }
  return "I32";
}

bool ValueFits(Values values, float value) {
  switch (values) {
    case Values::kAny:
    case Values::kColumns:
      return true;
    case Values::kFinite:
      return std::isfinite(value);
    case Values::kPositive:
      return std::isfinite(value) && value > 0;
    case Values::kFraction:
      break;
  }
  return value > 0 && value <= 1;  // false for NaN
}

std::string_view ValuesText(Values values) {
  switch (values) {
    case Values::kPositive:
      return "a positive, finite number";
    case Values::kFraction:
      return "above 0 and at most 1";
    default:
      return "finite";
  }
}

Tensor PairsTensor(std::vector<int64_t> shape, std::span<const Clip> clips) {
  std::vector<float> values;
  for (const Clip& clip : clips) {
    values.push_back(clip.max);
    values.push_back(clip.min);
  }
  return Tensor::Floats(std::move(shape), std::move(values));
}

std::vector<Clip> Pairs(const Tensor& tensor) {
  const std::vector<float> values = tensor.ToFloat();
  std::vector<Clip> clips(values.size() / 2);
  for (size_t i = 0; i < clips.size(); ++i) clips[i] = {values[2 * i], values[2 * i + 1]};
  return clips;
}

}  // namespace

std::vector<StoredTensor> StoredTensors(StoredModel* stored) { return Lister(stored).List(); }

void CheckStoredTensor(const StoredTensor& slot, const Tensor& tensor, const std::string& where) {
  const std::string title = "tensor '" + slot.name + "'";
  constexpr std::string_view kHint = "write the packed model again with `flatquant quantize`";
  if (!tensor.defined()) {
    throw Error("packed.missing_tensor", where, title + " is missing", kHint);
  }
  if (!TypeFits(slot.type, tensor.dtype)) {
    throw Error("packed.wrong_dtype", where,
                title + " is " + std::string(DTypeName(tensor.dtype)) + ", not " +
                    std::string(TypeText(slot.type)),
                kHint);
  }
  if (tensor.shape != slot.shape) {
    const TensorView wanted{tensor.dtype, slot.shape, nullptr};
    throw Error("packed.wrong_shape", where,
                title + " has shape " + tensor.ShapeString() + ", not " + wanted.ShapeString(),
                kHint);
  }
  if (slot.values == Values::kAny) return;
  if (slot.values == Values::kColumns) {
    CheckExtraColumns(tensor, slot.site_width, slot.act_bits, title, where);
    return;
  }
  const uint64_t n = tensor.elements();
  for (uint64_t i = 0; i < n; ++i) {
    float value;
    std::memcpy(&value, tensor.data + i * sizeof(float), sizeof(float));
    if (ValueFits(slot.values, value)) continue;
    throw Error("packed.bad_value", where,
                title + ": element " + std::to_string(i) + " is " + std::to_string(value) +
                    ", not " + std::string(ValuesText(slot.values)),
                kHint);
  }
}

ClipTensors ToTensors(const PackedBlock& block) {
  ClipTensors tensors;
  for (Site site : kSites) {
    const PackedSite& from = block.site(site);
    if (from.act_bits == 16 || from.is_flattened()) continue;
    tensors.sites[static_cast<size_t>(site)] =
        PairsTensor({static_cast<int64_t>(from.clips.size()), 2}, from.clips);
  }
  const PackedCache& cache = block.cache;
  if (cache.k_bits != 16) tensors.k = PairsTensor({2}, std::span(&cache.k_clip, 1));
  if (cache.v_bits != 16) tensors.v = PairsTensor({2}, std::span(&cache.v_clip, 1));
  return tensors;
}

void FromTensors(const ClipTensors& clips, PackedBlock* block) {
  for (Site site : kSites) {
    const Tensor& tensor = clips.sites[static_cast<size_t>(site)];
    block->site(site).clips = tensor.defined() ? Pairs(tensor) : std::vector<Clip>{Clip{}};
  }
  block->cache.k_clip = clips.k.defined() ? Pairs(clips.k)[0] : Clip{};
  block->cache.v_clip = clips.v.defined() ? Pairs(clips.v)[0] : Clip{};
}

}  // namespace flatquant
