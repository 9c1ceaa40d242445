#include "flatquant/packed/check.h"

#include <set>

#include "flatquant/base/error.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/quantization_config.h"
#include "flatquant/packed/stored_tensors.h"

namespace flatquant {
namespace {

constexpr std::string_view kHint = "this is a fault of what made the model; please report it";

void CheckBits(int bits, const std::string& title, const std::string& where) {
  if (IsBitWidth(bits)) return;
  throw Error("packed.bad_config", where,
              title + " has " + std::to_string(bits) + " bits, not 2 to 8 or 16", kHint);
}

void CheckGrid(const BlockGrid& grid, const ModelConfig& config, int64_t layer,
               const std::string& where) {
  for (Linear linear : kLinears) {
    const size_t i = static_cast<size_t>(linear);
    const std::string title = LinearPath(layer, linear);
    CheckBits(grid.weight_bits[i], title, where);
    const int64_t cols = ColumnsOf(grid, config, linear);
    if (!GroupsFit(grid.weight_groups[i], grid.weight_bits[i], cols)) {
      throw Error("packed.bad_config", where,
                  title + " has groups of " + std::to_string(grid.weight_groups[i]) +
                      " columns, with " + std::to_string(grid.weight_bits[i]) + " bits and " +
                      std::to_string(cols) + " columns",
                  kHint);
    }
  }
  const std::string path = "layer " + std::to_string(layer) + ", ";
  for (Site site : kSites) {
    const SiteGrid& of_site = grid.sites[static_cast<size_t>(site)];
    const std::string title = path + std::string(SiteName(site));
    CheckBits(of_site.act_bits, title, where);
    if (!FactorsFit(of_site, SiteWidth(config, site))) {
      throw Error("packed.wrong_shape", where,
                  title + ": matrices of orders " + std::to_string(of_site.left) + " and " +
                      std::to_string(of_site.right) + " do not make a width of " +
                      std::to_string(SiteWidth(config, site)),
                  kHint);
    }
    if (!FlatteningFits(of_site, SiteWidth(config, site))) {
      throw Error("packed.bad_config", where,
                  title + ": a flattened site has integers, no matrices, and at most " +
                      std::to_string(kMostFlattenedColumns) + " columns",
                  kHint);
    }
    if (!ClipsFit(of_site, site)) {
      throw Error(
          "packed.bad_config", where,
          title + " has " + std::to_string(of_site.clips) + " clips, neither 1 nor one per linear",
          kHint);
    }
  }
  CheckBits(grid.cache.k_bits, path + "K cache", where);
  CheckBits(grid.cache.v_bits, path + "V cache", where);
}

// Calls visit(tensor) for every tensor that a PackedModel can have.
template <typename Visit>
void EveryTensor(const PackedModel& model, const Visit& visit) {
  visit(model.embedding);
  for (const PackedBlock& block : model.blocks) {
    for (const Tensor* norm :
         {&block.input_norm, &block.post_attention_norm, &block.q_norm, &block.k_norm}) {
      visit(*norm);
    }
    for (const PackedLinear& linear : block.linears) {
      visit(linear.weight);
      visit(linear.scale);
      visit(linear.bias);
    }
    for (const PackedSite& site : block.sites) {
      visit(site.left);
      visit(site.right);
      visit(site.act_scale);
      visit(site.extra_columns);
    }
    visit(block.cache.k_transform);
    visit(block.cache.q_transform);
  }
  visit(model.final_norm);
  visit(model.lm_head);
  visit(model.head.scale);
}

}  // namespace

void CheckPackedModel(const PackedModel& model, const std::string& where) {
  if (model.blocks.empty() || static_cast<int64_t>(model.blocks.size()) != model.config.layers) {
    throw Error("packed.bad_config", where,
                "has " + std::to_string(model.blocks.size()) + " blocks for " +
                    std::to_string(model.config.layers) + " layers",
                kHint);
  }
  CheckBits(model.head.bits, "lm_head", where);
  CheckBits(model.head.act_bits, "the activation that enters lm_head", where);
  StoredModel stored;
  stored.model = model;
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    stored.grids.push_back(GridOf(model.blocks[i]));
    stored.clips.push_back(ToTensors(model.blocks[i]));
    CheckGrid(stored.grids.back(), model.config, static_cast<int64_t>(i), where);
  }
  std::set<const Tensor*> in_slots;
  for (const StoredTensor& slot : StoredTensors(&stored)) {
    CheckStoredTensor(slot, *slot.place, where);
    in_slots.insert(slot.place);
  }
  EveryTensor(stored.model, [&](const Tensor& tensor) {
    if (!tensor.defined() || in_slots.contains(&tensor)) return;
    throw Error("packed.extra_tensor", where,
                "holds a tensor of shape " + tensor.ShapeString() +
                    " (a scale, bias, norm or lm_head) that its configuration has no place for",
                kHint);
  });
}

namespace {

// Throws unless every row holds codes of the linear's bits.
void CheckRows(const PackedLinear& linear, LinearShape shape, const std::string& path,
               const std::string& where) {
  // Every pattern is a code at full width: nothing to read.
  if (linear.bits == 16 || linear.bits == 8) return;
  if (linear.bits == 4 && shape.cols % 2 == 0) return;
  const int64_t row_bytes = PackedRowBytes(linear.bits, shape.cols);
  for (int64_t r = 0; r < shape.rows; ++r) {
    if (RowIsCanonical(linear.bits, linear.weight.data + r * row_bytes, shape.cols)) continue;
    throw Error("packed.bad_value", where,
                "tensor '" + path + ".weight': row " + std::to_string(r) + " holds a code beyond " +
                    std::to_string(linear.bits) + " bits, or a left-over nibble that is not zero",
                "write the packed model again with `flatquant quantize`");
  }
}

}  // namespace

void CheckCodes(const PackedModel& model, const std::string& where) {
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    for (Linear which : kLinears) {
      const PackedBlock& block = model.blocks[i];
      CheckRows(block.linear(which), StoredShape(model.config, block, which),
                LinearPath(static_cast<int64_t>(i), which), where);
    }
  }
  const bool is_tied = !model.lm_head.defined();
  CheckRows(HeadLinear(model), {model.config.vocab, model.config.hidden},
            std::string(is_tied ? kEmbeddingPath : kLmHeadPath), where);
}

}  // namespace flatquant
