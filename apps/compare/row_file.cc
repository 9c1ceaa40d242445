#include "apps/compare/row_file.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFormat = "flatquant-compare-row";
constexpr int kVersion = 1;
constexpr size_t kMaxBytes = size_t{1} << 20;  // a hundred times what is written

struct KindName {
  EvalResult::Kind kind;
  const char* name;
};
constexpr KindName kKinds[] = {{EvalResult::Kind::kAccuracy, "accuracy"},
                               {EvalResult::Kind::kPerplexity, "perplexity"},
                               {EvalResult::Kind::kAverage, "average"}};

ordered_json ToJson(const std::vector<EvalResult>& results) {
  ordered_json list = ResultsJson(results);
  for (size_t i = 0; i < results.size(); ++i) {
    for (const KindName& entry : kKinds) {
      if (entry.kind == results[i].kind) list[i]["kind"] = entry.name;
    }
  }
  return list;
}

double NumberOrNan(const nlohmann::json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

EvalResult ResultOf(const nlohmann::json& entry) {
  EvalResult result;
  result.name = entry.at("name").get<std::string>();
  result.metric = entry.at("metric").get<std::string>();
  const auto kind = entry.at("kind").get<std::string>();
  bool known = false;
  for (const KindName& candidate : kKinds) {
    if (kind != candidate.name) continue;
    result.kind = candidate.kind;
    known = true;
  }
  if (!known) throw std::invalid_argument("unknown kind");
  result.value = entry.at("value").get<double>();
  result.error = NumberOrNan(entry.at("stderr"));
  result.items = entry.at("items").get<int64_t>();
  result.tokens = entry.at("tokens").get<int64_t>();
  result.windows = entry.at("windows").get<int64_t>();
  result.seqlen = entry.at("seqlen").get<int64_t>();
  result.seconds = NumberOrNan(entry.at("seconds"));
  return result;
}

RowFile Parse(const nlohmann::json& json) {
  RowFile row;
  if (json.at("format") != kFormat) throw std::invalid_argument("another format");
  if (json.at("version") != kVersion) throw std::invalid_argument("another version");
  for (const auto& setting : json.at("settings")) {
    row.settings.emplace_back(setting.at(0).get<std::string>(), setting.at(1).get<std::string>());
  }
  row.quantize_seconds = NumberOrNan(json.at("quantize_seconds"));
  row.transforms_from = json.at("transforms_from").get<std::string>();
  for (const auto& [key, list] : json.at("results").items()) {
    size_t used = 0;
    const uint64_t number = std::stoull(key, &used, 16);
    if (used != key.size()) throw std::invalid_argument("a key that is no number");
    for (const auto& entry : list) row.results[number].push_back(ResultOf(entry));
  }
  return row;
}

}  // namespace

RowFile RowFile::Read(const fs::path& path) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return {};
  const auto bad = [&path](const std::string& what) {
    return Error("compare.bad_state", path.string(), "is no record of a comparison: " + what,
                 "remove it; what it held is measured again");
  };
  nlohmann::json json;
  if (const auto fault = ParseStrictJson(ReadFile(path, kMaxBytes), &json)) throw bad(fault->what);
  try {
    return Parse(json);
  } catch (const nlohmann::json::exception&) {
    throw bad("a field is missing or of another type");
  } catch (const std::logic_error& error) {  // of std::stoull and Parse
    throw bad(error.what());
  }
}

void RowFile::Write(const fs::path& path) const {
  ordered_json pairs = ordered_json::array();
  for (const auto& [name, value] : settings) pairs.push_back({name, value});
  ordered_json lists = ordered_json::object();
  for (const auto& [key, list] : results) lists[fmt::format("{:016x}", key)] = ToJson(list);
  const ordered_json json = {{"format", kFormat},
                             {"version", kVersion},
                             {"settings", std::move(pairs)},
                             {"quantize_seconds", quantize_seconds},
                             {"transforms_from", transforms_from},
                             {"results", std::move(lists)}};
  AtomicFile file(path);
  file.Write(json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  file.Commit();
}

std::string SettingDifferences(const std::vector<std::pair<std::string, std::string>>& before,
                               const std::vector<std::pair<std::string, std::string>>& now) {
  std::map<std::string, std::string> rest(before.begin(), before.end());
  std::string text;
  const auto add = [&text](const std::string& name, const std::string& was, const std::string& is) {
    text += (text.empty() ? "" : "; ") + name + " was " + was + ", is " + is;
  };
  for (const auto& [name, value] : now) {
    const auto found = rest.find(name);
    const std::string was = found == rest.end() ? "not given" : found->second;
    if (was != value) add(name, was, value);
    if (found != rest.end()) rest.erase(found);
  }
  for (const auto& [name, value] : rest) add(name, value, "not given");
  return text;
}

}  // namespace flatquant
