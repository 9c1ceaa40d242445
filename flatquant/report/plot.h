#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// One line of a plot; x and y have the same number of points, not finite ones are
// left out.
struct PlotLine {
  std::string name;
  std::vector<double> x, y;
};

struct LinePlot {
  std::string id;  // letters, digits and '-'; unlike other plots' on the page
  std::string x_label, y_label;
  bool log_y = false;  // only where all y are above 0
  std::vector<PlotLine> lines;
};

// The plot as an <svg> element for a page: drawn by gnuplot, ids prefixed with the
// plot's, axes and text in the colour kPlotInk, which the page's style replaces to
// suit light and dark. Errors: report.no_gnuplot, report.plot_failed.
std::string DrawSvg(const LinePlot& plot);

// As gnuplot writes it, with and without blanks.
inline constexpr std::string_view kPlotInk = "rgb(119,119,119)";
inline constexpr std::string_view kPlotInkBlanks = "rgb(119, 119, 119)";

// What gnuplot prints for a script. Errors: as DrawSvg.
std::string RunGnuplot(const std::string& script);

}  // namespace flatquant
