#include "flatquant/report/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// Distinguishable on light and dark, and without telling red from green (after
// Okabe and Ito).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73",
                                    "#cc79a7", "#e69f00", "#56b4e9"};

// The distance of ticks where x counts something (blocks): whole numbers, about a
// dozen of them. 0 where x is not whole.
double WholeStep(const LinePlot& plot) {
  double lowest = INFINITY, highest = -INFINITY;
  for (const PlotLine& line : plot.lines) {
    for (double x : line.x) {
      if (x != std::floor(x)) return 0;
      lowest = std::min(lowest, x);
      highest = std::max(highest, x);
    }
  }
  return highest > lowest ? std::ceil((highest - lowest) / 12) : 0;
}

// A text inside a single-quoted gnuplot string.
std::string Quoted(std::string_view text) {
  std::string quoted = "'";
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    quoted += c;
    if (c == '\'') quoted += c;
  }
  return quoted + "'";
}

void ReplaceAll(std::string& text, std::string_view from, const std::string& to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

}  // namespace

std::string DrawSvg(const LinePlot& plot) {
  FLATQUANT_CHECK(!plot.lines.empty());
  // noenhanced: names may hold "_" and "^".
  std::string script =
      "set terminal svg size 640,300 dynamic noenhanced font 'sans-serif,13'\n"
      "set border 3 lc rgb '#777777'\n"
      "set tics nomirror textcolor rgb '#777777'\n"
      "set grid ytics lc rgb '#777777' lw 0.3\n"
      "set key above textcolor rgb '#777777'\n"
      "set format y '%g'\n";
  script += fmt::format("set xlabel {} textcolor rgb '#777777'\n", Quoted(plot.x_label));
  script += fmt::format("set ylabel {} textcolor rgb '#777777'\n", Quoted(plot.y_label));
  if (const double step = WholeStep(plot); step > 0) script += fmt::format("set xtics {}\n", step);
  if (plot.log_y) script += "set logscale y\n";
  std::string commands;
  for (size_t i = 0; i < plot.lines.size(); ++i) {
    const PlotLine& line = plot.lines[i];
    FLATQUANT_CHECK(line.x.size() == line.y.size());
    script += fmt::format("$line{} << END\n", i);
    for (size_t j = 0; j < line.x.size(); ++j) {
      const bool drawable =
          std::isfinite(line.x[j]) && std::isfinite(line.y[j]) && (!plot.log_y || line.y[j] > 0);
      // An empty line would cut the curve; a missing value only leaves a point out.
      script +=
          drawable ? fmt::format("{} {}\n", line.x[j], line.y[j]) : fmt::format("{} NaN\n", j);
    }
    script += "END\n";
    commands +=
        fmt::format("{} $line{} using 1:2 with linespoints lw 2 pt 7 ps 0.4 lc rgb '{}' title {}",
                    i == 0 ? "plot" : ",", i, kColours[i % std::size(kColours)], Quoted(line.name));
  }
  std::string svg = RunGnuplot(script + commands + "\n");
  const size_t begin = svg.find("<svg");
  if (begin == std::string::npos) {
    throw Error("report.plot_failed", plot.id, "gnuplot drew nothing", "its message is above");
  }
  svg.erase(0, begin);
  ReplaceAll(svg, "id='", "id='" + plot.id + "-");
  ReplaceAll(svg, "id=\"", "id=\"" + plot.id + "-");
  ReplaceAll(svg, "href='#", "href='#" + plot.id + "-");
  ReplaceAll(svg, "url(#", "url(#" + plot.id + "-");
  return svg;
}

}  // namespace flatquant
