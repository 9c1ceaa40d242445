#include "flatquant/report/model_sections.h"

#include <fmt/format.h>

#include <vector>

#include "flatquant/base/progress.h"
#include "flatquant/packed/sizes.h"
#include "flatquant/report/html.h"
#include "flatquant/report/plot.h"
#include "flatquant/report/section.h"

namespace flatquant {
namespace {

// The mean of a site's clips: one, or one per linear.
double MeanClip(const PackedSite& site) {
  double sum = 0;
  for (const Clip& clip : site.clips) sum += static_cast<double>(clip.max);
  return sum / static_cast<double>(site.clips.size());
}

}  // namespace

std::string ProvenanceSection(const PackedModel& model) {
  HtmlTable table{{}, {{"scheme", model.scheme.Name()}}, 2};
  for (const auto& [name, value] : model.provenance) table.rows.push_back({name, value});
  table.rows.push_back(
      {"network", fmt::format("{} blocks, hidden {}, vocabulary {}", model.config.layers,
                              model.config.hidden, model.config.vocab)});
  return SectionHead("Provenance", "How this model was made.") + table.Html();
}

std::string SizesSection(const PackedModel& model) {
  const PackedSizes sizes = SizesOf(model);
  const HtmlTable table{
      {"", "bytes", ""},
      {{"quantized linears, their transforms and clips", FormatBytes(sizes.linear_bytes),
        fmt::format("{:.1f} % of bf16", 100 * sizes.linear_ratio())},
       {"linears at 16 bits", FormatBytes(sizes.float_linear_bytes), ""},
       {"embedding, norms, output projection", FormatBytes(sizes.other_bytes), ""},
       {"all", FormatBytes(sizes.total()), ""}}};
  return SectionHead("Size", "Bytes of the tensors.") + table.Html();
}

std::string ClipsSection(const PackedModel& model, bool plots) {
  LinePlot plot{"clips", "block", "factor of the largest value", false, {}, true, false, {}};
  HtmlTable table{{"block"}, {}};
  for (const Site site : kSites) plot.lines.push_back({std::string(SiteName(site)), {}, {}});
  plot.lines.push_back({"K", {}, {}});
  plot.lines.push_back({"V", {}, {}});
  for (const PlotLine& line : plot.lines) table.head.push_back(line.name);
  for (size_t b = 0; b < model.blocks.size(); ++b) {
    const PackedBlock& block = model.blocks[b];
    std::vector<double> clips;
    for (const PackedSite& site : block.sites) clips.push_back(MeanClip(site));
    clips.push_back(static_cast<double>(block.cache.k_clip.max));
    clips.push_back(static_cast<double>(block.cache.v_clip.max));
    std::vector<std::string> row = {std::to_string(b)};
    for (size_t i = 0; i < clips.size(); ++i) {
      plot.lines[i].x.push_back(static_cast<double>(b));
      plot.lines[i].y.push_back(clips[i]);
      row.push_back(fmt::format("{:.3f}", clips[i]));
    }
    table.rows.push_back(std::move(row));
  }
  std::string html = SectionHead("Clips",
                                 "By how much a token's range is shrunk before it is quantized; "
                                 "1.000 is not at all.");
  if (plots) html += Figure(DrawSvg(plot), "Clip of activations and of K and V, by block.");
  return html + Details("Clips by block", table.Html());
}

}  // namespace flatquant
