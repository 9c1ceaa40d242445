#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/report/plot.h"

namespace flatquant {

// What 'flatquant flatness --json' writes: {"format", "version", ...}.
inline constexpr const char* kFlatnessFormat = "flatquant-flatness";
inline constexpr int kFlatnessVersion = 1;

// The channels of a network's sites under several methods, and how the quantized
// networks' errors grow: what was measured, as tables and plots.
class FlatnessFigures {
 public:
  // Of a JSON object with that format. where: names it in errors. Errors:
  // report.bad_results.
  static FlatnessFigures Parse(const nlohmann::json& json, const std::string& where);

  // For the console: the mean flatness over blocks by site and method, and the error
  // behind the last block.
  std::vector<std::string> Lines() const;

  // Sections of a page. plots: draw, which needs gnuplot.
  std::string Html(bool plots) const;

  // Every figure as a file of its own: a name without folder or suffix, an SVG.
  std::vector<std::pair<std::string, std::string>> Drawings() const;

  const std::string& model() const { return model_; }

 private:
  // The magnitudes of a site's channels, falling; not all of them.
  struct Curve {
    double flatness = 0;
    double rms = 0;  // of all channels
    std::vector<double> ranks, magnitudes;
  };
  struct SiteCurves {
    int64_t block = 0;
    std::string site;
    Curve activation, weight;
  };
  struct Method {
    std::string name;
    std::vector<SiteCurves> sites;            // the same blocks and sites in all methods
    std::vector<std::vector<double>> errors;  // [blocks][cells of positions]
  };

  // The means over blocks of a site's flatness numbers, a cell per method.
  std::vector<std::string> FlatnessRow(const std::string& site, bool activation) const;
  std::vector<std::string> MethodNames() const;
  size_t LeastFlat(const std::string& site) const;
  LinePlot CurvesPlot(size_t index, bool activation) const;
  LinePlot BlocksPlot(const std::string& site) const;
  LinePlot ErrorsPlot() const;
  std::vector<HeatMap> Landscapes() const;
  std::string FlatnessHtml(bool plots) const;
  std::string LandscapeHtml(bool plots) const;

  static Curve ParseCurve(const nlohmann::json& json);
  static Method ParseMethod(const nlohmann::json& json, size_t cells);

  std::string model_;
  std::string scheme_;
  int64_t windows_ = 0;
  int64_t tokens_ = 0;
  size_t cells_ = 0;
  std::vector<Method> methods_;
};

// A page of its own. json: embedded, what the figures were parsed from.
std::string FlatnessPage(const FlatnessFigures& figures, const std::string& json);

}  // namespace flatquant
