#include "flatquant/data/text_sources.h"

#include <cstddef>
#include <nlohmann/json.hpp>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// The bytes of the white-space character that text starts with, 0 if it starts
// with something else. Unicode's White_Space plus U+001C..U+001F, as in Python.
size_t LeadingSpaceBytes(std::string_view text) {
  const auto at = [&](size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const unsigned a = at(0);
  if ((a >= 0x09 && a <= 0x0d) || (a >= 0x1c && a <= 0x20)) return 1;
  if (a == 0xc2 && (at(1) == 0x85 || at(1) == 0xa0)) return 2;  // U+0085, U+00A0
  const unsigned code = a >= 0xe0 && a < 0xf0 && at(1) >= 0x80 && at(2) >= 0x80
                            ? (a & 0x0f) << 12 | (at(1) & 0x3f) << 6 | (at(2) & 0x3f)
                            : 0u;
  const bool space = code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
                     code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
  return space ? 3 : 0;
}

}  // namespace

std::vector<std::string_view> SplitLines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    if (line.ends_with('\r')) line.remove_suffix(1);
    lines.push_back(line);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return lines;
}

std::string_view StripWhitespace(std::string_view text) {
  while (const size_t bytes = LeadingSpaceBytes(text)) text.remove_prefix(bytes);
  return StripTrailingWhitespace(text);
}

std::string_view StripTrailingWhitespace(std::string_view text) {
  for (bool stripped = true; stripped;) {
    stripped = false;
    for (size_t bytes = 1; bytes <= 3 && bytes <= text.size(); ++bytes) {
      if (LeadingSpaceBytes(text.substr(text.size() - bytes)) != bytes) continue;
      text.remove_suffix(bytes);
      stripped = true;
      break;
    }
  }
  return text;
}

std::string Wikitext2Text(std::string_view raw) {
  std::string joined;
  joined.reserve(raw.size() * 2);
  bool first = true;
  for (std::string_view line : SplitLines(raw)) {
    if (!first) joined += "\n\n";
    first = false;
    if (!StripWhitespace(line).empty()) joined.append(line).append("\n");
  }
  return joined;
}

std::string PtbText(std::string_view raw) {
  std::string joined;
  joined.reserve(raw.size());
  bool first = true;
  for (std::string_view line : SplitLines(raw)) {
    if (!first) joined += ' ';
    first = false;
    joined += StripWhitespace(line);
  }
  return joined;
}

std::vector<std::string> JsonDocuments(std::string_view jsonl, const std::filesystem::path& path,
                                       size_t limit) {
  std::vector<std::string> documents;
  size_t number = 0;
  for (std::string_view line : SplitLines(jsonl)) {
    ++number;
    if (limit > 0 && documents.size() == limit) break;
    if (StripWhitespace(line).empty()) continue;
    const auto fail = [&](std::string_view what) {
      throw Error("data.bad_json", path.string() + ":" + std::to_string(number), what,
                  "every line must be an object like {\"text\": \"...\"}");
    };
    auto value = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (value.is_discarded()) fail("is not valid JSON");
    if (!value.is_object()) fail("is not a JSON object");
    const auto text = value.find("text");
    if (text == value.end()) fail("has no \"text\" member");
    if (!text->is_string()) fail("has a \"text\" member that is not a string");
    documents.push_back(std::move(text->get_ref<std::string&>()));
  }
  return documents;
}

std::string Join(const std::vector<std::string>& parts, std::string_view separator) {
  size_t bytes = 0;
  for (const std::string& part : parts) bytes += part.size() + separator.size();
  std::string joined;
  joined.reserve(bytes);
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) joined += separator;
    joined += parts[i];
  }
  return joined;
}

}  // namespace flatquant
