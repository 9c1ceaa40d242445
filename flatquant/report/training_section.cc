#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "flatquant/report/html.h"
#include "flatquant/report/plot.h"
#include "flatquant/report/result_sections.h"
#include "flatquant/report/section.h"

namespace flatquant {
namespace {

using nlohmann::json;

std::string Losses(const json& blocks, bool plots) {
  PlotLine before{"before", {}, {}}, after{"after", {}, {}};
  HtmlTable table{{"block", "loss before", "loss after", "time", ""}, {}};
  for (const json& block : blocks) {
    const double index = Number(block, "block");
    before.x.push_back(index);
    before.y.push_back(Number(block, "loss_before"));
    after.x.push_back(index);
    after.y.push_back(Number(block, "loss_after"));
    const auto abnormal = block.find("abnormal");
    table.rows.push_back({fmt::format("{}", index), fmt::format("{:.4g}", before.y.back()),
                          fmt::format("{:.4g}", after.y.back()), Duration(Number(block, "seconds")),
                          abnormal != block.end() && abnormal->get<bool>() ? "abnormal" : ""});
  }
  // Methods that do not train know no loss.
  const bool trained = std::any_of(after.y.begin(), after.y.end(), [](double y) { return y > 0; });
  std::string html;
  if (plots && trained) {
    html = Figure(
        DrawSvg(LinePlot{"training", "block", "loss", true, {before, after}, true, false, {}}),
        "Error of each block before and after its transforms were learned.");
  }
  return html + Details("Loss by block", table.Html());
}

// The numbers of one site over blocks, where report.json has them.
struct SiteNumbers {
  std::vector<double> blocks, before, after;
};

// Flatness before and after, and the mean clip of weights: by site and block.
std::string Sites(const json& blocks, bool plots) {
  std::map<std::string, SiteNumbers> flatness;
  HtmlTable table{{"block", "site", "activations", "behind transforms", "weights",
                   "behind transforms", "mean weight clip"},
                  {},
                  2};
  const auto cell = [](double value) { return fmt::format("{:.4f}", value); };
  for (const json& block : blocks) {
    if (!block.contains("sites")) continue;
    for (const json& site : block.at("sites")) {
      std::vector<std::string> row = {fmt::format("{}", Number(block, "block")),
                                      Text(site, "site")};
      if (site.contains("flatness") && site.at("flatness").is_object()) {
        const json& from = site.at("flatness");
        SiteNumbers& numbers = flatness[Text(site, "site")];
        numbers.blocks.push_back(Number(block, "block"));
        numbers.before.push_back(Number(from, "activation_before"));
        numbers.after.push_back(Number(from, "activation_after"));
        row.insert(row.end(),
                   {cell(numbers.before.back()), cell(numbers.after.back()),
                    cell(Number(from, "weight_before")), cell(Number(from, "weight_after"))});
      } else {
        row.insert(row.end(), 4, "-");
      }
      row.push_back(fmt::format("{:.3f}", Number(site, "weight_clip_mean")));
      table.rows.push_back(std::move(row));
    }
  }
  if (table.rows.empty()) return {};
  std::string html;
  if (plots && !flatness.empty()) {
    html += "<div class=\"plots\">";
    size_t index = 0;
    for (const auto& [site, numbers] : flatness) {
      const LinePlot plot{fmt::format("site-{}", index++),
                          "block",
                          "distance from flat",
                          false,
                          {{"original", numbers.blocks, numbers.before},
                           {"behind transforms", numbers.blocks, numbers.after}},
                          true,
                          false,
                          {420, 280}};
      html += Figure(DrawSvg(plot), site + ": flatness of activations, 0 is flat.");
    }
    html += "</div>\n";
  }
  return html + Details("Flatness and weight clips by site", table.Html());
}

std::string Warnings(const json& run) {
  std::string items;
  if (!run.contains("warnings")) return items;
  for (const json& warning : run.at("warnings")) {
    items += "<li>" + EscapeHtml(warning.get<std::string>()) + "</li>\n";
  }
  return items.empty() ? items : "<ul class=\"warnings\">\n" + items + "</ul>\n";
}

// The options that the run was asked for.
std::string Options(const json& run) {
  if (!run.contains("options")) return {};
  HtmlTable table{{}, {}, 2};
  for (const auto& [name, value] : run.at("options").items()) {
    table.rows.push_back({name, value.is_string() ? value.get<std::string>() : value.dump()});
  }
  return table.rows.empty() ? std::string() : Details("Options", table.Html());
}

}  // namespace

std::string TrainingSection(const json& run, bool plots) {
  const json& blocks = run.at("blocks");
  std::string html = SectionHead("Training", "Mean squared error of each block's output.");
  html += Warnings(run);
  if (!blocks.empty()) html += Losses(blocks, plots) + Sites(blocks, plots);
  html +=
      HtmlTable{{}, {{"self-test error", fmt::format("{:.3g}", Number(run, "self_test_error"))}}}
          .Html();
  return html + Options(run);
}

}  // namespace flatquant
