#include "flatquant/tokenizer/json_view.h"

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"

namespace flatquant::tokenizer {
namespace {

constexpr int kMaxDepth = 64;                      // tokenizer files use about 8
constexpr size_t kMaxFileBytes = size_t{1} << 28;  // the largest real ones have 35 MB

void CheckDepth(std::string_view text, std::string_view name) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') --depth;
    if (depth > kMaxDepth) {
      throw Error("tokenizer.bad_json", name, "nested deeper than " + std::to_string(kMaxDepth),
                  "this is not a tokenizer file; download it again");
    }
  }
}

}  // namespace

JsonView JsonView::operator[](std::string_view key) const {
  const nlohmann::json& object = Object();
  const auto found = object.find(std::string(key));
  return {found == object.end() ? nullptr : &*found,
          where_ + (where_.find(": ") == std::string::npos ? ": " : ".") + std::string(key)};
}

bool JsonView::Has(std::string_view key) const {
  return IsObject() && value_->contains(std::string(key));
}

void JsonView::Fail(std::string_view what) const {
  throw Error("tokenizer.bad_json", where_, what, "download the tokenizer's files again");
}

void JsonView::Unsupported(std::string_view what) const {
  throw Error("tokenizer.unsupported", where_, what,
              "supported are BPE tokenizers of the LLaMA, Mistral, Qwen and GPT-2 families");
}

std::string JsonView::String() const {
  if (!IsString()) Fail("should be a string");
  return value_->get<std::string>();
}

bool JsonView::Bool() const {
  if (value_ == nullptr || !value_->is_boolean()) Fail("should be true or false");
  return value_->get<bool>();
}

int64_t JsonView::Integer() const {
  if (!IsInteger()) Fail("should be an integer");
  if (value_->is_number_unsigned() &&
      value_->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    Fail("is too large");
  }
  return value_->get<int64_t>();
}

std::vector<JsonView> JsonView::Items() const {
  std::vector<JsonView> items;
  size_t i = 0;
  for (const nlohmann::json& item : Array()) {
    items.emplace_back(&item, where_ + "[" + std::to_string(i++) + "]");
  }
  return items;
}

std::string JsonView::StringOr(std::string_view fallback) const {
  return missing() ? std::string(fallback) : String();
}

bool JsonView::BoolOr(bool fallback) const { return missing() ? fallback : Bool(); }

const nlohmann::json& JsonView::Object() const {
  if (!IsObject()) Fail("should be an object");
  return *value_;
}

const nlohmann::json& JsonView::Array() const {
  if (!IsArray()) Fail("should be an array");
  return *value_;
}

JsonFile JsonFile::Parse(std::string_view text, std::string_view name) {
  CheckDepth(text, name);
  JsonFile file;
  file.name_ = std::string(name);
  try {
    file.value_ = nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw Error("tokenizer.bad_json", name, error.what(), "download the file again");
  }
  if (!file.value_.is_object()) file.root().Fail("should be an object");
  return file;
}

JsonFile JsonFile::Read(const std::filesystem::path& path) {
  return Parse(ReadFile(path, kMaxFileBytes), path.string());
}

JsonFile JsonFile::ReadIfPresent(const std::filesystem::path& path) {
  return std::filesystem::exists(path) ? Read(path) : Parse("{}", path.string());
}

}  // namespace flatquant::tokenizer
