#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace flatquant {

// JSON from files that nobody vouches for. Stricter than nlohmann's defaults:
// a key that appears twice in an object is an error instead of the last one
// winning, a NUL byte is an error instead of the end of the text, and nesting is
// bounded. (This header is for sources that link nlohmann_json.)
struct JsonFault {
  enum class Kind { kNotUtf8, kSyntax, kDuplicateKey, kTooDeep };
  Kind kind;
  std::string what;  // one line, ready for an Error's `what`
};

inline constexpr size_t kMaxJsonDepth = 64;

// Parses text into *out, or says what is wrong with it.
std::optional<JsonFault> ParseStrictJson(std::string_view text, nlohmann::json* out);

// The checks that no parser makes for us: valid UTF-8 without NUL bytes.
std::optional<JsonFault> CheckJsonText(std::string_view text);

// A parser's message as one line.
JsonFault SyntaxFault(size_t position, std::string_view message);

// A name from a file as it may stand in a one-line message: in single quotes,
// control characters replaced, cut where it is very long.
std::string Quoted(std::string_view name);

}  // namespace flatquant
