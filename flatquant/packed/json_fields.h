#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"

// Strict access to the objects of a packed model's config.json. (This header is
// for sources that link nlohmann_json.)
namespace flatquant::packed_internal {

[[noreturn]] inline void BadConfig(const std::string& where, const std::string& what) {
  throw Error("packed.bad_config", where, what,
              "write the packed model again with `flatquant quantize`");
}

// One object whose fields must be there and have their type. The object and the
// name of the file outlive it. Errors: packed.bad_config, with the field's path.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string path, const std::string& where)
      : object_(object), path_(std::move(path)), where_(where) {
    if (!object.is_object()) BadConfig(where_, path_ + " is not an object");
  }

  const nlohmann::json& object() const { return object_; }
  const std::string& path() const { return path_; }
  bool Has(std::string_view key) const { return object_.contains(key); }

  const nlohmann::json& Get(std::string_view key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) {
      BadConfig(where_, path_ + " has no '" + std::string(key) + "'");
    }
    return *found;
  }

  JsonFields Object(std::string_view key) const { return {Get(key), PathOf(key), where_}; }

  // An integer from 0 to largest (>= 0).
  int64_t Integer(std::string_view key, int64_t largest) const {
    const nlohmann::json& value = Get(key);
    // nlohmann holds every non-negative integer literal that fits as unsigned.
    if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(largest)) {
      BadConfig(where_, PathOf(key) + " is not an integer from 0 to " + std::to_string(largest));
    }
    return value.get<int64_t>();
  }

  bool Boolean(std::string_view key) const {
    const nlohmann::json& value = Get(key);
    if (!value.is_boolean()) BadConfig(where_, PathOf(key) + " is not true or false");
    return value.get<bool>();
  }

  std::string Text(std::string_view key) const {
    const nlohmann::json& value = Get(key);
    if (!value.is_string()) BadConfig(where_, PathOf(key) + " is not a string");
    return value.get<std::string>();
  }

  // Refuses keys beyond those that `known` accepts: they would carry a meaning
  // that this version of the format does not have.
  template <typename Known>
  void RefuseOthers(const Known& known) const {
    for (const auto& [key, value] : object_.items()) {
      if (!known(key)) BadConfig(where_, path_ + " has an unknown key " + Quoted(key));
    }
  }

 private:
  std::string PathOf(std::string_view key) const { return path_ + "." + std::string(key); }

  const nlohmann::json& object_;
  std::string path_;
  const std::string& where_;
};

}  // namespace flatquant::packed_internal
