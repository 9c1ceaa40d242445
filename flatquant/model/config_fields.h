#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace flatquant {

// The fields of a JSON object of a configuration file; every accessor checks the
// type and names the file and the field in its errors: config.missing_field,
// config.bad_value, config.unsupported. A null field counts as absent; an
// accessor with a fallback answers it for an absent field.
class ConfigFields {
 public:
  // object and where (the file) must outlive the fields; prefix is the path of
  // the object within the file: "rope_scaling.", or nothing at the top.
  ConfigFields(const nlohmann::json& object, std::string prefix, const std::string& where)
      : object_(&object), prefix_(std::move(prefix)), where_(&where) {}

  // nullptr where absent.
  const nlohmann::json* Find(const char* name) const;
  const nlohmann::json& Require(const char* name) const;

  // Whether the field is written at all, be it null.
  bool Mentions(const char* name) const { return object_->contains(name); }

  // A size in [1, limit].
  int64_t Size(const char* name, int64_t limit) const;
  int64_t Size(const char* name, int64_t limit, int64_t fallback) const;

  // A finite number above 0.
  double Positive(const char* name) const;
  double Positive(const char* name, double fallback) const;

  bool Bool(const char* name, bool fallback) const;
  std::string String(const char* name, const std::string& fallback) const;
  std::optional<ConfigFields> Object(const char* name) const;

  // A value that is, or belongs to, the field: an integer in [low, high].
  int64_t Integer(const nlohmann::json& value, const char* name, int64_t low, int64_t high) const;

  // Throw: "'name' is VALUE, not EXPECTED" and "'name' is FOUND".
  [[noreturn]] void BadValue(const char* name, const nlohmann::json& value,
                             const std::string& expected) const;
  [[noreturn]] void Unsupported(const char* name, const std::string& found,
                                std::string_view supported) const;

 private:
  double Positive(const nlohmann::json& value, const char* name) const;

  const nlohmann::json* object_;
  std::string prefix_;
  const std::string* where_;
};

// The object that a configuration file's text holds. Error: config.bad_json.
nlohmann::json ParseConfigObject(std::string_view text, const std::string& where);

}  // namespace flatquant
