#include "flatquant/report/flatness_figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "flatquant/base/error.h"
#include "flatquant/model/network.h"
#include "flatquant/report/html.h"

namespace flatquant {
namespace {

using nlohmann::json;

// Two beside each other on a wide page, one across a phone.
constexpr PlotSize kSmall = {420, 280};
constexpr PlotSize kLandscape = {420, 300};

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

const char* Kind(bool activation) { return activation ? "activation" : "weight"; }

// Unlike JSON's own errors, which name no file.
[[noreturn]] void Bad(const std::string& where, const std::string& what) {
  throw Error("report.bad_results", where, what, "make it anew with 'flatquant flatness --json'");
}

std::vector<double> Numbers(const json& from) {
  auto numbers = from.get<std::vector<double>>();
  for (double& number : numbers) {
    if (!std::isfinite(number) || number < 0) throw std::runtime_error("has a number below 0");
  }
  return numbers;
}

}  // namespace

FlatnessFigures::Curve FlatnessFigures::ParseCurve(const json& from) {
  Curve curve{from.at("flatness").get<double>(), from.at("rms").get<double>(),
              Numbers(from.at("ranks")), Numbers(from.at("magnitudes"))};
  if (curve.ranks.empty() || curve.ranks.size() != curve.magnitudes.size()) {
    throw std::runtime_error("has a curve whose ranks and magnitudes do not match");
  }
  return curve;
}

FlatnessFigures::Method FlatnessFigures::ParseMethod(const json& from, size_t cells) {
  Method method{from.at("name").get<std::string>(), {}, {}};
  for (const json& site : from.at("sites")) {
    method.sites.push_back({site.at("block").get<int64_t>(), site.at("site").get<std::string>(),
                            ParseCurve(site.at("activation")), ParseCurve(site.at("weight"))});
    const std::string& name = method.sites.back().site;
    if (std::none_of(kSites.begin(), kSites.end(),
                     [&](Site known) { return SiteName(known) == name; })) {
      throw std::runtime_error("names a site that there is not");
    }
  }
  for (const json& block : from.at("errors")) {
    method.errors.push_back(Numbers(block));
    if (method.errors.back().size() != cells) {
      throw std::runtime_error("has errors at other positions than it says");
    }
  }
  return method;
}

FlatnessFigures FlatnessFigures::Parse(const json& from, const std::string& where) {
  FlatnessFigures figures;
  try {
    if (from.at("format") != kFlatnessFormat) Bad(where, "is not of 'flatquant flatness'");
    if (from.at("version") != kFlatnessVersion) Bad(where, "is of another version");
    figures.model_ = from.at("model").get<std::string>();
    figures.scheme_ = from.at("scheme").get<std::string>();
    figures.windows_ = from.at("windows").get<int64_t>();
    figures.tokens_ = from.at("tokens").get<int64_t>();
    figures.cells_ = from.at("positions").size();
    for (const json& method : from.at("methods")) {
      figures.methods_.push_back(ParseMethod(method, figures.cells_));
    }
  } catch (const json::exception&) {
    Bad(where, "is not what 'flatquant flatness' writes");
  } catch (const std::runtime_error& error) {
    Bad(where, error.what());
  }
  const auto same = [](const SiteCurves& a, const SiteCurves& b) {
    return a.block == b.block && a.site == b.site;
  };
  const auto& methods = figures.methods_;
  if (methods.empty() || methods[0].sites.empty() || methods[0].errors.empty() ||
      figures.cells_ == 0) {
    Bad(where, "has no figures");
  }
  for (const Method& method : methods) {
    if (!std::equal(method.sites.begin(), method.sites.end(), methods[0].sites.begin(),
                    methods[0].sites.end(), same) ||
        method.errors.size() != methods[0].errors.size()) {
      Bad(where, "has methods with other blocks than each other");
    }
  }
  return figures;
}

std::vector<std::string> FlatnessFigures::MethodNames() const {
  std::vector<std::string> names;
  for (const Method& method : methods_) names.push_back(method.name);
  return names;
}

std::vector<std::string> FlatnessFigures::FlatnessRow(const std::string& site,
                                                      bool activation) const {
  std::vector<std::string> cells;
  for (const Method& method : methods_) {
    std::vector<double> numbers;
    for (const SiteCurves& curves : method.sites) {
      if (!site.empty() && curves.site != site) continue;
      numbers.push_back((activation ? curves.activation : curves.weight).flatness);
    }
    cells.push_back(fmt::format("{:.4f}", Mean(numbers)));
  }
  return cells;
}

// The block where a site's activation is least flat under the first method.
size_t FlatnessFigures::LeastFlat(const std::string& site) const {
  const auto& sites = methods_[0].sites;
  size_t found = sites.size();
  for (size_t i = 0; i < sites.size(); ++i) {
    if (sites[i].site != site) continue;
    if (found == sites.size() || sites[i].activation.flatness > sites[found].activation.flatness) {
      found = i;
    }
  }
  return found;
}

LinePlot FlatnessFigures::CurvesPlot(size_t index, bool activation) const {
  const SiteCurves& first = methods_[0].sites[index];
  LinePlot plot{fmt::format("{}-{}", first.site, Kind(activation)),
                "channel, largest first",
                "magnitude / r.m.s.",
                /*log_y=*/true,
                {},
                /*points=*/false,
                /*falling=*/true,
                kSmall};
  for (const Method& method : methods_) {
    const SiteCurves& site = method.sites[index];
    const Curve& curve = activation ? site.activation : site.weight;
    PlotLine line{fmt::format("{} {:.3f}", method.name, curve.flatness), curve.ranks, {}};
    for (const double magnitude : curve.magnitudes) line.y.push_back(magnitude / curve.rms);
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

LinePlot FlatnessFigures::BlocksPlot(const std::string& site) const {
  LinePlot plot{site + "-blocks", "block", "flatness number", false, {}, true, false, kSmall};
  for (const Method& method : methods_) {
    PlotLine line{method.name, {}, {}};
    for (const SiteCurves& curves : method.sites) {
      if (curves.site != site) continue;
      line.x.push_back(static_cast<double>(curves.block));
      line.y.push_back(curves.activation.flatness);
    }
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

LinePlot FlatnessFigures::ErrorsPlot() const {
  LinePlot plot{"errors-blocks", "block", "mean squared error", /*log_y=*/true, {}, true,
                false,           {}};
  for (const Method& method : methods_) {
    PlotLine line{method.name, {}, {}};
    for (size_t block = 0; block < method.errors.size(); ++block) {
      line.x.push_back(static_cast<double>(block));
      line.y.push_back(Mean(method.errors[block]));
    }
    plot.lines.push_back(std::move(line));
  }
  return plot;
}

std::vector<HeatMap> FlatnessFigures::Landscapes() const {
  // One scale for all, so that colours can be compared.
  double low = INFINITY, high = 0;
  for (const Method& method : methods_) {
    for (const auto& block : method.errors) {
      for (const double error : block) {
        if (error > 0) low = std::min(low, error);
        high = std::max(high, error);
      }
    }
  }
  std::vector<HeatMap> maps;
  if (!(low < high)) return maps;
  for (size_t i = 0; i < methods_.size(); ++i) {
    maps.push_back({fmt::format("errors-{}", i), "token", "block", "mean squared error",
                    static_cast<double>(tokens_) / static_cast<double>(cells_), methods_[i].errors,
                    low, high, kLandscape});
  }
  return maps;
}

std::vector<std::string> FlatnessFigures::Lines() const {
  const auto line = [](std::string_view first, const std::vector<std::string>& cells) {
    std::string text = fmt::format("{:<22}", first);
    for (const std::string& cell : cells) text += fmt::format("{:>14}", cell);
    return text;
  };
  std::vector<std::string> lines = {
      fmt::format("{} {}: distance of channel magnitudes from flat, mean over blocks", model_,
                  scheme_),
      line("", MethodNames())};
  for (const bool activation : {true, false}) {
    for (const Site site : kSites) {
      const std::string name(SiteName(site));
      lines.push_back(line(name + " " + Kind(activation), FlatnessRow(name, activation)));
    }
    lines.push_back(line(fmt::format("all {}s", activation ? "activation" : "weight"),
                         FlatnessRow({}, activation)));
  }
  std::vector<std::string> last;
  for (const Method& method : methods_) {
    last.push_back(fmt::format("{:.4g}", Mean(method.errors.back())));
  }
  lines.push_back(line("MSE of last block", last));
  return lines;
}

std::string FlatnessFigures::FlatnessHtml(bool plots) const {
  HtmlTable table{{"site", "of"}, {}, 2};
  for (const std::string& name : MethodNames()) table.head.push_back(name);
  for (const bool activation : {true, false}) {
    for (const Site site : kSites) {
      const std::string name(SiteName(site));
      std::vector<std::string> row = {name, activation ? "activations" : "weights"};
      for (const std::string& cell : FlatnessRow(name, activation)) row.push_back(cell);
      table.rows.push_back(std::move(row));
    }
  }
  std::string html =
      "<h2>Flatness</h2>\n<p>How far the magnitudes of a site's channels are from all being "
      "equal: the root mean square distance of the sorted curve from the flat line of the same "
      "energy. 0 is flat; an outlier channel takes the grid's range from all others. Means over "
      "blocks, rtn being the network as it is.</p>\n" +
      table.Html();
  if (!plots) return html;
  for (const Site site : kSites) {
    const std::string name(SiteName(site));
    const size_t index = LeastFlat(name);
    const std::string block = std::to_string(methods_[0].sites[index].block);
    html += "<h3>" + name + "</h3>\n<div class=\"plots\">";
    html += Figure(DrawSvg(CurvesPlot(index, true)), "Activations, block " + block + ".");
    html += Figure(DrawSvg(CurvesPlot(index, false)), "Weights, block " + block + ".");
    html += "</div>\n";
  }
  html +=
      "<p>Each of the block whose activations are least flat under the first method. The number "
      "beside a name is the curve's distance from flat.</p>\n<h3>Every block</h3>\n"
      "<div class=\"plots\">";
  for (const Site site : kSites) {
    const std::string name(SiteName(site));
    html += Figure(DrawSvg(BlocksPlot(name)), name + ": flatness number of activations.");
  }
  return html + "</div>\n";
}

std::string FlatnessFigures::LandscapeHtml(bool plots) const {
  HtmlTable table{{"block"}, {}};
  for (const std::string& name : MethodNames()) table.head.push_back(name);
  for (size_t block = 0; block < methods_[0].errors.size(); ++block) {
    std::vector<std::string> row = {std::to_string(block)};
    for (const Method& method : methods_) {
      row.push_back(fmt::format("{:.4g}", Mean(method.errors[block])));
    }
    table.rows.push_back(std::move(row));
  }
  std::string html = fmt::format(
      "<h2>Error landscape</h2>\n<p>Mean squared error of what each block puts out, against the "
      "original network's, with all blocks before it quantized ({}): {} windows of {} "
      "tokens.</p>\n",
      EscapeHtml(scheme_), windows_, tokens_);
  if (plots) {
    html += Figure(DrawSvg(ErrorsPlot()), "Mean over token positions.");
    html += "<div class=\"plots\">";
    const std::vector<HeatMap> maps = Landscapes();
    for (size_t i = 0; i < maps.size(); ++i) {
      html += Figure(DrawSvg(maps[i]), methods_[i].name + ": error by block and token position.");
    }
    html += "</div>\n";
  }
  return html + Details("Errors by block", table.Html());
}

std::string FlatnessFigures::Html(bool plots) const {
  return FlatnessHtml(plots) + LandscapeHtml(plots);
}

std::vector<std::pair<std::string, std::string>> FlatnessFigures::Drawings() const {
  std::vector<std::pair<std::string, std::string>> drawings;
  const auto add = [&](const auto& plot) { drawings.emplace_back(plot.id, DrawSvg(plot)); };
  for (const Site site : kSites) {
    const std::string name(SiteName(site));
    add(CurvesPlot(LeastFlat(name), true));
    add(CurvesPlot(LeastFlat(name), false));
    add(BlocksPlot(name));
  }
  add(ErrorsPlot());
  for (const HeatMap& map : Landscapes()) add(map);
  return drawings;
}

std::string FlatnessPage(const FlatnessFigures& figures, const std::string& json) {
  const std::string title = figures.model() + ": flatness";
  return HtmlPage(title, "<h1>" + EscapeHtml(title) + "</h1>\n" + figures.Html(/*plots=*/true),
                  json);
}

}  // namespace flatquant
