#include "flatquant/checkpoint/strict_json.h"

#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace flatquant {
namespace {

using nlohmann::json;

// The length of the UTF-8 sequence that starts at text[i], or 0 if there is no
// valid one (Unicode standard, table 3-7: no overlong forms, no surrogates,
// nothing above U+10FFFF).
size_t Utf8Length(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<uint8_t>(text[k]); };
  const uint8_t lead = byte(i);
  if (lead < 0x80) return 1;
  size_t length = 0;
  uint8_t low = 0x80;  // bounds of the second byte
  uint8_t high = 0xbf;
  if (lead >= 0xc2 && lead <= 0xdf) {
    length = 2;
  } else if (lead >= 0xe0 && lead <= 0xef) {
    length = 3;
    if (lead == 0xe0) low = 0xa0;
    if (lead == 0xed) high = 0x9f;
  } else if (lead >= 0xf0 && lead <= 0xf4) {
    length = 4;
    if (lead == 0xf0) low = 0x90;
    if (lead == 0xf4) high = 0x8f;
  } else {
    return 0;
  }
  if (text.size() - i < length) return 0;
  if (byte(i + 1) < low || byte(i + 1) > high) return 0;
  for (size_t k = i + 2; k < i + length; ++k) {
    if (byte(k) < 0x80 || byte(k) > 0xbf) return 0;
  }
  return length;
}

// Forwards nlohmann's events to its tree builder, and stops at what that would
// let pass. Nothing here recurses, so depth costs no stack.
class StrictBuilder : public nlohmann::detail::json_sax_dom_parser<json> {
  using Base = nlohmann::detail::json_sax_dom_parser<json>;

 public:
  explicit StrictBuilder(json* out) : Base(*out, /*allow_exceptions=*/false) {}

  bool start_object(size_t count) {
    keys_.emplace_back();
    return Enter() && Base::start_object(count);
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return Base::end_object();
  }
  bool start_array(size_t count) { return Enter() && Base::start_array(count); }
  bool end_array() {
    --depth_;
    return Base::end_array();
  }
  bool key(std::string& name) {
    if (!keys_.back().insert(name).second) {
      fault_ = JsonFault{JsonFault::Kind::kDuplicateKey,
                         "the key " + Quoted(name) + " appears twice in one JSON object"};
      return false;
    }
    return Base::key(name);
  }
  template <typename Exception>
  bool parse_error(size_t position, const std::string&, const Exception& exception) {
    fault_ = SyntaxFault(position, exception.what());
    return false;
  }

  std::optional<JsonFault>& fault() { return fault_; }

 private:
  bool Enter() {
    if (++depth_ <= kMaxJsonDepth) return true;
    fault_ = JsonFault{JsonFault::Kind::kTooDeep,
                       "JSON nested deeper than " + std::to_string(kMaxJsonDepth) + " levels"};
    return false;
  }

  size_t depth_ = 0;
  std::vector<std::set<std::string>> keys_;  // of the open objects
  std::optional<JsonFault> fault_;
};

}  // namespace

std::optional<JsonFault> CheckJsonText(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    if (length == 0) {
      return JsonFault{JsonFault::Kind::kNotUtf8, "invalid UTF-8 at byte " + std::to_string(i)};
    }
    if (text[i] == '\0') return SyntaxFault(i, "a NUL byte");
    i += length;
  }
  return std::nullopt;
}

std::optional<JsonFault> ParseStrictJson(std::string_view text, json* out) {
  if (auto fault = CheckJsonText(text)) return fault;
  StrictBuilder builder(out);
  json::sax_parse(text.begin(), text.end(), &builder);
  return std::move(builder.fault());
}

JsonFault SyntaxFault(size_t position, std::string_view message) {
  // nlohmann writes "[json.exception.parse_error.101] parse error at line 1,
  // column 3: syntax error ..."; its own prefix says nothing to a user.
  const size_t prefix = message.find("] ");
  if (message.starts_with("[") && prefix != std::string_view::npos) {
    message.remove_prefix(prefix + 2);
  }
  std::string what = "invalid JSON at byte " + std::to_string(position) + ": ";
  for (char c : message.substr(0, 300)) {
    what += static_cast<uint8_t>(c) < 0x20 || c == 0x7f ? ' ' : c;
  }
  return JsonFault{JsonFault::Kind::kSyntax, std::move(what)};
}

std::string Quoted(std::string_view name) {
  constexpr size_t kMaxShown = 120;
  std::string text = "'";
  for (char c : name.substr(0, kMaxShown)) {
    text += static_cast<uint8_t>(c) < 0x20 || c == 0x7f ? '?' : c;
  }
  return text + (name.size() > kMaxShown ? "...'" : "'");
}

}  // namespace flatquant
