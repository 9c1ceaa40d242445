#include "flatquant/report/section.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "flatquant/base/progress.h"
#include "flatquant/report/html.h"

namespace flatquant {

std::string SectionHead(const std::string& title, const std::string& remark) {
  return "<h2>" + EscapeHtml(title) + "</h2>\n<p>" + EscapeHtml(remark) + "</p>\n";
}

double Number(const nlohmann::json& object, const char* member) {
  const nlohmann::json& value = object.at(member);
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

std::string Text(const nlohmann::json& object, const char* member) {
  return object.at(member).get<std::string>();
}

std::string Value(double value, bool percent) {
  if (!std::isfinite(value)) return "-";
  return percent ? fmt::format("{:.2f} %", 100 * value) : fmt::format("{:.4f}", value);
}

std::string Duration(double seconds) {
  constexpr double kAYear = 3.2e7;  // beyond it a file says nonsense
  return seconds >= 0 && seconds < kAYear ? FormatDuration(seconds) : "-";
}

}  // namespace flatquant
