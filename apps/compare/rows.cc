#include "apps/compare/rows.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/compress/quantize.h"

namespace flatquant {
namespace {

constexpr const char* kPlainGptq = "gptq";

}  // namespace

std::string CompareRow::Name() const {
  return method == "rtn" && weights == "gptq" ? kPlainGptq : method;
}

std::string CompareRow::Folder() const { return method + "-" + weights; }

std::vector<CompareRow> CompareRows(const std::vector<std::string>& methods,
                                    const std::vector<std::string>& weights, const Scheme& scheme) {
  const std::vector<std::string> known = MethodNames();
  std::vector<CompareRow> rows;
  const auto add = [&rows](CompareRow row) {
    if (std::find(rows.begin(), rows.end(), row) == rows.end()) rows.push_back(std::move(row));
  };
  for (const std::string& name : methods) {
    const bool plain_gptq = name == kPlainGptq;
    if (!plain_gptq && std::find(known.begin(), known.end(), name) == known.end()) {
      throw Error("compare.unknown_method", "--methods " + name, "there is no such method",
                  fmt::format("choose from gptq, {}", fmt::join(known, ", ")));
    }
    const std::string method = plain_gptq ? "rtn" : name;
    if (scheme.weight_bits >= 16) {
      add({method, "rtn"});
    } else if (plain_gptq) {
      add({method, "gptq"});
    } else {
      for (const std::string& choice : weights) add({method, choice});
    }
  }
  return rows;
}

std::vector<std::string> SplitNames(const std::string& option, const std::string& text) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end == begin) {
      throw Error("compare.bad_list", option + " " + text, "has an empty name",
                  "separate names by single commas");
    }
    names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

}  // namespace flatquant
