#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/eval/result.h"

namespace flatquant {

// What a comparison knows of a row, kept as JSON so that another run need not find it
// out again. Values are bound to what they were measured on, so that one that has
// become wrong is not found.
struct RowFile {
  // What decided the bytes of the row's model: names, as people know them, and values.
  std::vector<std::pair<std::string, std::string>> settings;
  double quantize_seconds = std::numeric_limits<double>::quiet_NaN();  // NaN: not known
  std::string transforms_from;  // the row whose transforms were taken over
  // Results by key: the model's bytes, the data and the arithmetic.
  std::map<uint64_t, std::vector<EvalResult>> results;

  // An empty one where there is no file. Errors: compare.bad_state, file.*.
  static RowFile Read(const std::filesystem::path& path);
  void Write(const std::filesystem::path& path) const;  // errors: file.*
};

// "--lr was 0.005, is 0.01; ...": empty if nothing differs.
std::string SettingDifferences(const std::vector<std::pair<std::string, std::string>>& before,
                               const std::vector<std::pair<std::string, std::string>>& now);

}  // namespace flatquant
