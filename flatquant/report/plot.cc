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

// From dark to bright with even steps of lightness, for all kinds of colour vision
// (after Matplotlib's viridis).
constexpr const char* kPalette =
    "set palette maxcolors 48 defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', "
    "4 '#fde725')\n";

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
  // Where there are many, gnuplot's own round numbers are easier to read.
  constexpr double kMany = 100;
  if (highest <= lowest || highest - lowest > kMany) return 0;
  return std::ceil((highest - lowest) / 12);
}

bool Drawable(const LinePlot& plot, double x, double y) {
  return std::isfinite(x) && std::isfinite(y) && (!plot.log_y || y > 0);
}

// Ticks within decades: a narrow logarithmic range may hold no power of 10.
std::string DecadeTicks(double low, double high) {
  const bool narrow = high < 10 * low;
  const std::vector<double> digits =
      narrow ? std::vector<double>{1, 1.25, 1.5, 2, 3, 5, 7} : std::vector<double>{1, 2, 5};
  std::string ticks;
  for (int decade = static_cast<int>(std::floor(std::log10(low)));
       std::pow(10, decade) <= high && decade < 300; ++decade) {
    for (const double digit : digits) {
      const double tick = digit * std::pow(10, decade);
      if (tick >= low && tick <= high)
        ticks += fmt::format("{}{:g}", ticks.empty() ? "" : ",", tick);
    }
  }
  return ticks.empty() ? ticks : "set ytics (" + ticks + ")\n";
}

// The top of a logarithmic range that begins at `low` and leaves the names, which begin
// at a third of x, above the falling curves.
double TopAboveNames(const LinePlot& plot, double low) {
  double middle = low;
  for (const PlotLine& line : plot.lines) {
    const double y = line.y.empty() ? low : line.y[line.y.size() / 3];
    if (std::isfinite(y)) middle = std::max(middle, y);
  }
  constexpr double kLine = 19.5;    // the height of a name, in pixels
  constexpr double kAround = 80;    // what axis, ticks and labels take of the plot's
  constexpr double kLargest = 0.8;  // more names than fit cover the curves after all
  const double names = kLine * static_cast<double>(plot.lines.size() + 1);
  const double share = std::min(names / (plot.size.height - kAround), kLargest);
  return std::exp((std::log(middle) - share * std::log(low)) / (1 - share));
}

// The range of y where gnuplot's own would not do: it warns about one of no height, and
// extends a logarithmic one to whole decades.
std::string RangeOfY(const LinePlot& plot) {
  double lowest = INFINITY, highest = -INFINITY;
  for (const PlotLine& line : plot.lines) {
    for (size_t i = 0; i < line.y.size(); ++i) {
      if (!Drawable(plot, line.x[i], line.y[i])) continue;
      lowest = std::min(lowest, line.y[i]);
      highest = std::max(highest, line.y[i]);
    }
  }
  if (lowest == highest) {
    const double around = plot.log_y ? lowest / 2 : std::max(std::abs(lowest) / 2, 0.5);
    return fmt::format("set yrange [{}:{}]\n", lowest - around, highest + around);
  }
  if (!plot.falling || !plot.log_y || !(lowest < highest)) return {};
  constexpr double kMargin = 1.1;
  const double low = lowest / kMargin;
  const double high = std::max(highest * kMargin, TopAboveNames(plot, low));
  return fmt::format("set yrange [{}:{}]\n", low, high) + DecadeTicks(low, high);
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

// What all plots start with. noenhanced: names may hold "_" and "^".
std::string Frame(const PlotSize& size, std::string_view x_label, std::string_view y_label) {
  return fmt::format(
      "set terminal svg size {},{} dynamic noenhanced font 'sans-serif,13'\n"
      "set border 3 lc rgb '#777777'\n"
      "set tics nomirror textcolor rgb '#777777'\n"
      "set xlabel {} textcolor rgb '#777777'\n"
      "set ylabel {} textcolor rgb '#777777'\n",
      size.width, size.height, Quoted(x_label), Quoted(y_label));
}

std::string Draw(const std::string& id, const std::string& script) {
  std::string svg = RunGnuplot(script);
  const size_t begin = svg.find("<svg");
  if (begin == std::string::npos) {
    throw Error("report.plot_failed", id, "gnuplot drew nothing", "its message is above");
  }
  svg.erase(0, begin);
  ReplaceAll(svg, "id='", "id='" + id + "-");
  ReplaceAll(svg, "id=\"", "id=\"" + id + "-");
  ReplaceAll(svg, "href='#", "href='#" + id + "-");
  ReplaceAll(svg, "url(#", "url(#" + id + "-");
  return svg;
}

}  // namespace

std::string DrawSvg(const LinePlot& plot) {
  FLATQUANT_CHECK(!plot.lines.empty());
  std::string script = Frame(plot.size, plot.x_label, plot.y_label);
  script +=
      "set grid ytics lc rgb '#777777' lw 0.3\n"
      "set format y '%g'\nset autoscale xfix\n";
  script += fmt::format("set key {} textcolor rgb '#777777'\n",
                        plot.falling ? "inside top right" : "above");
  if (const double step = WholeStep(plot); step > 0) script += fmt::format("set xtics {}\n", step);
  if (plot.log_y) script += "set logscale y\n";
  script += RangeOfY(plot);
  const char* style = plot.points ? "linespoints lw 2 pt 7 ps 0.4" : "lines lw 2";
  std::string commands;
  for (size_t i = 0; i < plot.lines.size(); ++i) {
    const PlotLine& line = plot.lines[i];
    FLATQUANT_CHECK(line.x.size() == line.y.size());
    script += fmt::format("$line{} << END\n", i);
    for (size_t j = 0; j < line.x.size(); ++j) {
      // An empty line would cut the curve; a missing value only leaves a point out.
      script += Drawable(plot, line.x[j], line.y[j]) ? fmt::format("{} {}\n", line.x[j], line.y[j])
                                                     : fmt::format("{} NaN\n", j);
    }
    script += "END\n";
    commands +=
        fmt::format("{} $line{} using 1:2 with {} lc rgb '{}' title {}", i == 0 ? "plot" : ",", i,
                    style, kColours[i % std::size(kColours)], Quoted(line.name));
  }
  return Draw(plot.id, script + commands + "\n");
}

std::string DrawSvg(const HeatMap& map) {
  FLATQUANT_CHECK(!map.rows.empty() && !map.rows[0].empty());
  FLATQUANT_CHECK(map.low > 0 && map.low < map.high);
  std::string script = Frame(map.size, map.x_label, map.y_label) + kPalette;
  script += fmt::format(
      "set logscale cb\nset cbrange [{}:{}]\nset format cb '%.0e'\nset tics out\n"
      "set cblabel {} textcolor rgb '#777777'\n"
      "set xrange [0:{}]\nset yrange [-0.5:{}]\nset ytics {}\n",
      map.low, map.high, Quoted(map.value_label),
      static_cast<double>(map.rows[0].size()) * map.x_step,
      static_cast<double>(map.rows.size()) - 0.5, (map.rows.size() + 11) / 12);
  script += "$cells << END\n";
  for (size_t y = 0; y < map.rows.size(); ++y) {
    FLATQUANT_CHECK(map.rows[y].size() == map.rows[0].size());
    for (size_t x = 0; x < map.rows[y].size(); ++x) {
      const double value = map.rows[y][x];
      const double middle = (static_cast<double>(x) + 0.5) * map.x_step;
      script += std::isfinite(value) && value > 0 ? fmt::format("{} {} {}\n", middle, y, value)
                                                  : fmt::format("{} {} NaN\n", middle, y);
    }
  }
  // pixels: rectangles; gnuplot would otherwise embed a bitmap.
  return Draw(map.id, script + "END\nplot $cells using 1:2:3 with image pixels notitle\n");
}

}  // namespace flatquant
