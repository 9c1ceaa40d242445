#include "flatquant/model/config_fields.h"

#include <cmath>
#include <limits>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

using nlohmann::json;

constexpr std::string_view kHint = "use the config.json that belongs to the weights";

std::string Show(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  return value.is_string() ? Quoted(value.get_ref<const std::string&>()) : value.dump();
}

}  // namespace

const json* ConfigFields::Find(const char* name) const {
  const auto found = object_->find(name);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

const json& ConfigFields::Require(const char* name) const {
  const json* value = Find(name);
  if (value == nullptr) {
    throw Error("config.missing_field", *where_, "lacks '" + prefix_ + name + "'", kHint);
  }
  return *value;
}

int64_t ConfigFields::Size(const char* name, int64_t limit) const {
  return Integer(Require(name), name, 1, limit);
}

int64_t ConfigFields::Size(const char* name, int64_t limit, int64_t fallback) const {
  const json* value = Find(name);
  return value == nullptr ? fallback : Integer(*value, name, 1, limit);
}

int64_t ConfigFields::Integer(const json& value, const char* name, int64_t low,
                              int64_t high) const {
  constexpr auto kLargest = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const bool fits = value.is_number_integer() &&
                    (!value.is_number_unsigned() || value.get<uint64_t>() <= kLargest);
  const int64_t number = fits ? value.get<int64_t>() : 0;
  if (!fits || number < low || number > high) {
    BadValue(name, value, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
  }
  return number;
}

double ConfigFields::Positive(const char* name) const { return Positive(Require(name), name); }

double ConfigFields::Positive(const char* name, double fallback) const {
  const json* value = Find(name);
  return value == nullptr ? fallback : Positive(*value, name);
}

double ConfigFields::Positive(const json& value, const char* name) const {
  const double number = value.is_number() ? value.get<double>() : 0.0;
  if (!(number > 0.0) || !std::isfinite(number)) BadValue(name, value, "a positive number");
  return number;
}

bool ConfigFields::Bool(const char* name, bool fallback) const {
  const json* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) BadValue(name, *value, "true or false");
  return value->get<bool>();
}

std::string ConfigFields::String(const char* name, const std::string& fallback) const {
  const json* value = Find(name);
  if (value == nullptr) return fallback;
  if (!value->is_string()) BadValue(name, *value, "a string");
  return value->get<std::string>();
}

std::optional<ConfigFields> ConfigFields::Object(const char* name) const {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) BadValue(name, *value, "an object");
  return ConfigFields(*value, prefix_ + name + ".", *where_);
}

void ConfigFields::BadValue(const char* name, const json& value,
                            const std::string& expected) const {
  throw Error("config.bad_value", *where_,
              "'" + prefix_ + name + "' is " + Show(value) + ", not " + expected, kHint);
}

void ConfigFields::Unsupported(const char* name, const std::string& found,
                               std::string_view supported) const {
  throw Error("config.unsupported", *where_, "'" + prefix_ + name + "' is " + found,
              "supported: " + std::string(supported));
}

json ParseConfigObject(std::string_view text, const std::string& where) {
  json root;
  auto fault = ParseStrictJson(text, &root);
  if (!fault && !root.is_object()) fault = JsonFault{JsonFault::Kind::kSyntax, "not a JSON object"};
  if (fault) throw Error("config.bad_json", where, fault->what, "download the file again");
  return root;
}

}  // namespace flatquant
