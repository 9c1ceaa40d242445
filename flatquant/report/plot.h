#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// The size that a plot is drawn for, in pixels. It is scaled to the page's width; a
// smaller drawing so gets larger letters.
struct PlotSize {
  int width = 640;
  int height = 300;
};

// One line of a plot; x and y have the same number of points, not finite ones are
// left out.
struct PlotLine {
  std::string name;
  std::vector<double> x, y;
};

struct LinePlot {
  std::string id;  // letters, digits, '_' and '-'; unlike other plots' on the page
  std::string x_label, y_label;
  bool log_y = false;  // only where all y are above 0
  std::vector<PlotLine> lines;
  bool points = true;    // mark each; not for curves of many
  bool falling = false;  // leaves room for the names inside, top right; y fits tightly
  PlotSize size = {};
};

// Values over a grid of cells, as colours on a logarithmic scale.
struct HeatMap {
  std::string id;  // as a LinePlot's
  std::string x_label, y_label, value_label;
  double x_step = 1;                      // the width of a cell in units of x; y counts rows
  std::vector<std::vector<double>> rows;  // of equal length; what is not above 0 stays empty
  double low = 0, high = 0;               // the ends of the scale, 0 < low < high
  PlotSize size = {};
};

// The plot as an <svg> element for a page: drawn by gnuplot, ids prefixed with the
// plot's, axes and text in the colour kPlotInk, which the page's style replaces to
// suit light and dark. Errors: report.no_gnuplot, report.plot_failed.
std::string DrawSvg(const LinePlot& plot);
std::string DrawSvg(const HeatMap& map);

// As gnuplot writes it, with and without blanks.
inline constexpr std::string_view kPlotInk = "rgb(119,119,119)";
inline constexpr std::string_view kPlotInkBlanks = "rgb(119, 119, 119)";

// What gnuplot prints for a script. Errors: as DrawSvg.
std::string RunGnuplot(const std::string& script);

}  // namespace flatquant
