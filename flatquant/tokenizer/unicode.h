#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace flatquant::tokenizer {

// One decoded character: its code point and its length in bytes (1..4).
struct Utf8Char {
  char32_t code;
  uint32_t length;
};

// Decodes the character at text[at]. text must be valid UTF-8 there (everything
// that has passed ReplaceInvalidUtf8 is); at < text.size().
inline Utf8Char DecodeUtf8(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {static_cast<char32_t>((lead & 0x1f) << 6 | (byte(1) & 0x3f)), 2};
  if (lead < 0xf0) {
    return {static_cast<char32_t>((lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f)),
            3};
  }
  return {static_cast<char32_t>((lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 |
                                (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f)),
          4};
}

// code must be a Unicode scalar value.
void AppendUtf8(char32_t code, std::string* out);

// The number of leading bytes of text that are valid UTF-8 (no overlong forms,
// surrogates or values past U+10FFFF).
size_t ValidUtf8Prefix(std::string_view text);

// text with every maximal ill-formed subpart replaced by U+FFFD, as the Unicode
// standard recommends (section 3.9) and as Rust and Python do.
std::string ReplaceInvalidUtf8(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };

// The Unicode normal form of valid UTF-8. O(n log n) whatever the text, long
// runs of combining marks included. Throws Error tokenizer.too_long where the
// library's 31-bit lengths do not suffice.
std::string Normalize(std::string_view text, NormalForm form);

std::string Lowercase(std::string_view text);

// Removes nonspacing marks (general category Mn).
std::string StripAccents(std::string_view text);

bool IsSpace(char32_t code);    // the White_Space property
bool IsNumeric(char32_t code);  // general category N
bool IsWord(char32_t code);     // what \w matches: letters, marks, Nd, Pc

}  // namespace flatquant::tokenizer
