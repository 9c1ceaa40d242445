#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant::tokenizer {

// A value inside a JSON file together with where it stands, so that every wrong
// type is reported by its place. Does not own the value; an absent value and
// null are the same ("missing").
class JsonView {
 public:
  JsonView(const nlohmann::json* value, std::string where)
      : value_(value), where_(std::move(where)) {}

  bool missing() const { return value_ == nullptr || value_->is_null(); }
  bool IsString() const { return value_ != nullptr && value_->is_string(); }
  bool IsObject() const { return value_ != nullptr && value_->is_object(); }
  bool IsArray() const { return value_ != nullptr && value_->is_array(); }
  bool IsInteger() const { return value_ != nullptr && value_->is_number_integer(); }

  // The member of this object; missing if there is none.
  JsonView operator[](std::string_view key) const;
  bool Has(std::string_view key) const;  // true for an explicit null too

  // Errors of all below: tokenizer.bad_json when the value has another type.
  std::string String() const;
  bool Bool() const;
  int64_t Integer() const;
  std::vector<JsonView> Items() const;  // of an array
  std::string StringOr(std::string_view fallback) const;
  bool BoolOr(bool fallback) const;
  const nlohmann::json& Object() const;
  const nlohmann::json& Array() const;

  const std::string& where() const { return where_; }

  // Throws tokenizer.bad_json about this value.
  [[noreturn]] void Fail(std::string_view what) const;
  // Throws tokenizer.unsupported about this value.
  [[noreturn]] void Unsupported(std::string_view what) const;

 private:
  const nlohmann::json* value_;
  std::string where_;
};

// A parsed JSON file. Errors: file.*, tokenizer.bad_json (also for documents
// nested deeper than any tokenizer needs, which keeps our recursion bounded).
class JsonFile {
 public:
  static JsonFile Read(const std::filesystem::path& path);
  static JsonFile Parse(std::string_view text, std::string_view name);
  // An empty object when the file does not exist.
  static JsonFile ReadIfPresent(const std::filesystem::path& path);

  JsonView root() const { return {&value_, name_}; }

 private:
  std::string name_;
  nlohmann::json value_;
};

}  // namespace flatquant::tokenizer
