#include "apps/inspect_model.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/console.h"
#include "apps/inspect_tensors.h"
#include "flatquant/base/progress.h"
#include "flatquant/packed/linear_compute.h"
#include "flatquant/packed/sizes.h"

namespace flatquant {
namespace {

// "16x16 (x) 16x16", "4x4 (x) I", "flattened", or "none".
std::string TransformText(const Tensor& left, const Tensor& right) {
  if (!left.defined() && !right.defined()) return "none";
  const auto side = [](const Tensor& matrix) {
    return matrix.defined() ? fmt::format("{}x{}", matrix.shape[0], matrix.shape[1])
                            : std::string("I");
  };
  return side(left) + " (x) " + side(right);
}

std::string TransformText(const PackedSite& site) {
  return site.is_flattened() ? "flattened" : TransformText(site.left, site.right);
}

std::string BitsText(int bits) { return bits == 16 ? "16 (float)" : std::to_string(bits); }

std::string WeightsText(const PackedBlock& block, Site site) {
  std::string text;
  for (Linear linear : LinearsOf(site)) {
    const PackedLinear& packed = block.linear(linear);
    const std::string group = packed.is_grouped() ? fmt::format("g{}", packed.group_size) : "";
    text += fmt::format("{}{} w{}{}{}", text.empty() ? "" : ", ", LinearName(linear), packed.bits,
                        group, packed.bias.defined() ? "+bias" : "");
  }
  return text;
}

nlohmann::ordered_json ComputeJson(const LinearCompute& compute) {
  return {{"int4_share", compute.int4_share()},
          {"int8_share", compute.int8_share()},
          {"growth", compute.growth()}};
}

// The smallest and largest clip factor among blocks.
struct ClipRange {
  float low = 1.0f;
  float high = 0.0f;
  void Add(const Clip& clip) {
    low = std::min({low, clip.min, clip.max});
    high = std::max({high, clip.min, clip.max});
  }
  std::string Text() const {
    return low == 1.0f ? "none" : fmt::format("{:.3f}..{:.3f}", low, high);
  }
};

// Blocks that a text describes equally.
struct Alike {
  std::string text;
  std::vector<uint64_t> blocks;
  ClipRange clips;
};

// Lines "NAME  blocks RANGE  TEXT, clips RANGE", one per distinct text.
// describe(block, &clips) gives the text and adds the block's clips.
template <typename Describe>
void AppendFolded(const PackedModel& model, std::string_view name, const Describe& describe,
                  std::vector<std::string>* lines) {
  std::vector<Alike> alike;  // in the order of their first blocks
  for (size_t i = 0; i < model.blocks.size(); ++i) {
    ClipRange clips;
    const std::string text = describe(model.blocks[i], &clips);
    auto group = std::find_if(alike.begin(), alike.end(),
                              [&](const Alike& other) { return other.text == text; });
    if (group == alike.end()) group = alike.insert(group, Alike{text, {}, {}});
    group->blocks.push_back(i);
    group->clips.low = std::min(group->clips.low, clips.low);
    group->clips.high = std::max(group->clips.high, clips.high);
  }
  for (const Alike& group : alike) {
    lines->push_back(fmt::format("  {:<9} blocks {:<6} {}; clips {}", name, Ranges(group.blocks),
                                 group.text, group.clips.Text()));
  }
}

nlohmann::ordered_json ShapeJson(const Tensor& tensor) {
  return tensor.defined() ? nlohmann::ordered_json(tensor.shape) : nlohmann::ordered_json();
}

nlohmann::ordered_json ClipJson(const Clip& clip) { return {{"max", clip.max}, {"min", clip.min}}; }

nlohmann::ordered_json SiteJson(const PackedBlock& block, Site which) {
  const PackedSite& site = block.site(which);
  nlohmann::ordered_json clips = nlohmann::ordered_json::array();
  for (const Clip& clip : site.clips) clips.push_back(ClipJson(clip));
  nlohmann::ordered_json weights = nlohmann::ordered_json::object();
  nlohmann::ordered_json groups = nlohmann::ordered_json::object();
  for (Linear linear : LinearsOf(which)) {
    weights[std::string(LinearName(linear))] = block.linear(linear).bits;
    groups[std::string(LinearName(linear))] = block.linear(linear).group_size;
  }
  return {{"left", ShapeJson(site.left)},
          {"right", ShapeJson(site.right)},
          {"flattened", site.is_flattened()},
          {"extra_columns", site.extra_columns.defined() ? site.extra_columns.shape[0] : 0},
          {"act_bits", site.act_bits},
          {"clips", std::move(clips)},
          {"weight_bits", std::move(weights)},
          {"weight_groups", std::move(groups)}};
}

}  // namespace

std::vector<std::string> ConfigLines(const ModelConfig& config) {
  std::string extras;
  if (config.tied_embeddings) extras += ", tied embeddings";
  if (config.qkv_bias) extras += ", qkv bias";
  if (config.qk_norm) extras += ", q and k norms";
  if (config.sliding_window) extras += fmt::format(", window of {}", *config.sliding_window);
  return {fmt::format("network  {}: {} blocks, hidden {}, ffn {}, {} heads ({} for k and v) of {}",
                      ArchitectureName(config.architecture), config.layers, config.hidden,
                      config.ffn, config.heads, config.kv_heads, config.head_dim),
          fmt::format("         vocabulary {}, context {}, rope theta {}{}", config.vocab,
                      config.max_positions, config.rope.theta, extras)};
}

nlohmann::ordered_json ConfigJson(const ModelConfig& config) {
  return {{"architecture", ArchitectureName(config.architecture)},
          {"layers", config.layers},
          {"hidden", config.hidden},
          {"ffn", config.ffn},
          {"heads", config.heads},
          {"kv_heads", config.kv_heads},
          {"head_dim", config.head_dim},
          {"vocab", config.vocab},
          {"max_positions", config.max_positions},
          {"rope_theta", config.rope.theta},
          {"tied_embeddings", config.tied_embeddings},
          {"qkv_bias", config.qkv_bias},
          {"qk_norm", config.qk_norm}};
}

std::vector<std::string> PackedLines(const PackedModel& model) {
  std::vector<std::string> lines = {"scheme   " + model.scheme.Name(),
                                    "sites    (transform, activation bits, weights, clip factors)"};
  for (Site site : kSites) {
    AppendFolded(
        model, SiteName(site),
        [site](const PackedBlock& block, ClipRange* clips) {
          for (const Clip& clip : block.site(site).clips) clips->Add(clip);
          return fmt::format("{}; a{}; {}", TransformText(block.site(site)),
                             block.site(site).act_bits, WeightsText(block, site));
        },
        &lines);
  }
  AppendFolded(
      model, "cache",
      [](const PackedBlock& block, ClipRange* clips) {
        clips->Add(block.cache.k_clip);
        clips->Add(block.cache.v_clip);
        const Tensor& k = block.cache.k_transform;
        return fmt::format("K bits {}, V bits {}; transform of K {}", BitsText(block.cache.k_bits),
                           BitsText(block.cache.v_bits),
                           k.defined() ? fmt::format("{}x{}", k.shape[0], k.shape[1]) : "none");
      },
      &lines);
  lines.push_back(fmt::format("  {:<9} weight bits {}, activation bits {}{}", "lm_head",
                              BitsText(model.head.bits), BitsText(model.head.act_bits),
                              model.lm_head.defined() ? "" : "; it is the embedding too"));
  lines.push_back("compute  of linears: " + ComputeOf(model).Text());
  const PackedSizes sizes = SizesOf(model);
  lines.push_back(fmt::format("sizes    quantized linears {} ({:.1f}% of their bf16 bytes)",
                              FormatBytes(sizes.linear_bytes), 100 * sizes.linear_ratio()));
  lines.push_back(fmt::format("         other linears {}, embeddings and norms {}, in all {}",
                              FormatBytes(sizes.float_linear_bytes), FormatBytes(sizes.other_bytes),
                              FormatBytes(sizes.total())));
  lines.push_back("made by");
  for (const auto& [key, value] : model.provenance) {
    lines.push_back(fmt::format("  {}: {}", Printable(key), Printable(value)));
  }
  return lines;
}

nlohmann::ordered_json PackedJson(const PackedModel& model) {
  nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
  for (const PackedBlock& block : model.blocks) {
    nlohmann::ordered_json sites = nlohmann::ordered_json::object();
    for (Site site : kSites) sites[std::string(SiteName(site))] = SiteJson(block, site);
    blocks.push_back({{"sites", std::move(sites)},
                      {"cache",
                       {{"k_bits", block.cache.k_bits},
                        {"v_bits", block.cache.v_bits},
                        {"k_clip", ClipJson(block.cache.k_clip)},
                        {"v_clip", ClipJson(block.cache.v_clip)},
                        {"k_transform", ShapeJson(block.cache.k_transform)}}}});
  }
  const PackedSizes sizes = SizesOf(model);
  return {{"scheme", model.scheme.Name()},
          {"lm_head", {{"bits", model.head.bits}, {"act_bits", model.head.act_bits}}},
          {"provenance", model.provenance},
          {"linear_compute", ComputeJson(ComputeOf(model))},
          {"sizes",
           {{"linear_bytes", sizes.linear_bytes},
            {"bf16_linear_bytes", sizes.bf16_linear_bytes},
            {"linear_ratio", sizes.linear_ratio()},
            {"float_linear_bytes", sizes.float_linear_bytes},
            {"other_bytes", sizes.other_bytes},
            {"total_bytes", sizes.total()}}},
          {"blocks", std::move(blocks)}};
}

}  // namespace flatquant
