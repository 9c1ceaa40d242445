#include "flatquant/tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant::tokenizer {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";

// The length of the well-formed sequence at text[at], or 0 with *bad set to the
// length of the maximal ill-formed subpart (>= 1). Table 3-7 of the standard.
size_t SequenceLength(std::string_view text, size_t at, size_t* bad) {
  const auto lead = static_cast<unsigned char>(text[at]);
  if (lead < 0x80) return 1;
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xbf;
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
    *bad = 1;
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    const size_t next = at + i;
    if (next >= text.size() || static_cast<unsigned char>(text[next]) < low ||
        static_cast<unsigned char>(text[next]) > high) {
      *bad = i;
      return 0;
    }
    low = 0x80;
    high = 0xbf;
  }
  return length;
}

bool IsAscii(std::string_view text) {
  return std::none_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; });
}

// Appends the (compatibility) decomposition of code.
void Decompose(char32_t code, utf8proc_option_t options, std::vector<utf8proc_int32_t>* out) {
  std::array<utf8proc_int32_t, 32> buffer;  // the longest decomposition has 18
  int last_boundclass = 0;
  const utf8proc_ssize_t n = utf8proc_decompose_char(
      static_cast<utf8proc_int32_t>(code), buffer.data(), buffer.size(), options, &last_boundclass);
  FLATQUANT_CHECK(n >= 0 && n <= static_cast<utf8proc_ssize_t>(buffer.size()));
  out->insert(out->end(), buffer.begin(), buffer.begin() + n);
}

int CombiningClass(utf8proc_int32_t code) { return utf8proc_get_property(code)->combining_class; }

// Canonical ordering: every run of marks sorted by combining class, stably.
void OrderMarks(std::vector<utf8proc_int32_t>* codes) {
  auto at = codes->begin();
  while (at != codes->end()) {
    if (CombiningClass(*at) == 0) {
      ++at;
      continue;
    }
    auto end = at;
    while (end != codes->end() && CombiningClass(*end) != 0) ++end;
    std::stable_sort(at, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    at = end;
  }
}

}  // namespace

void AppendUtf8(char32_t code, std::string* out) {
  if (code < 0x80) {
    out->push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out->push_back(static_cast<char>(0xc0 | code >> 6));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else if (code < 0x10000) {
    out->push_back(static_cast<char>(0xe0 | code >> 12));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else {
    out->push_back(static_cast<char>(0xf0 | code >> 18));
    out->push_back(static_cast<char>(0x80 | (code >> 12 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code >> 6 & 0x3f)));
    out->push_back(static_cast<char>(0x80 | (code & 0x3f)));
  }
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    size_t bad = 0;
    const size_t length = SequenceLength(text, at, &bad);
    if (length == 0) return at;
    at += length;
  }
  return at;
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t valid = ValidUtf8Prefix(text);
    out.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    size_t bad = 0;
    SequenceLength(text, 0, &bad);
    out.append(kReplacement);
    text.remove_prefix(bad);
  }
  return out;
}

std::string Normalize(std::string_view text, NormalForm form) {
  const bool compose = form == NormalForm::kNfc || form == NormalForm::kNfkc;
  const bool compatible = form == NormalForm::kNfkc || form == NormalForm::kNfkd;
  // Every character below U+0300 (lead bytes below 0xCC) is its own NFC, and
  // never combines with one before it.
  const bool unchanged =
      form == NormalForm::kNfc
          ? std::none_of(text.begin(), text.end(),
                         [](char c) { return static_cast<unsigned char>(c) >= 0xcc; })
          : IsAscii(text);
  if (unchanged) return std::string(text);
  if (text.size() > (size_t{1} << 31)) {
    throw Error("tokenizer.too_long", "text", "more than 2 GiB in one piece", "split the text");
  }

  const int options = UTF8PROC_STABLE | (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
                      (compatible ? UTF8PROC_COMPAT : 0);
  // utf8proc decomposes only when it is asked to compose or to decompose, and
  // reads the same table for both.
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    at += c.length;
    if (c.code < 0x80) {
      codes.push_back(static_cast<utf8proc_int32_t>(c.code));
    } else {
      Decompose(c.code, static_cast<utf8proc_option_t>(options), &codes);
    }
  }
  // utf8proc's own ordering is a bubble sort, quadratic on long runs of marks.
  OrderMarks(&codes);
  utf8proc_ssize_t length = static_cast<utf8proc_ssize_t>(codes.size());
  if (compose) {
    length =
        utf8proc_normalize_utf32(codes.data(), length, static_cast<utf8proc_option_t>(options));
    FLATQUANT_CHECK(length >= 0);
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < length; ++i) AppendUtf8(static_cast<char32_t>(codes[i]), &out);
  return out;
}

std::string Lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    at += c.length;
    if (c.code == 0x130) {  // the one character whose full lower case has two
      AppendUtf8('i', &out);
      AppendUtf8(0x307, &out);
    } else {
      AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c.code))),
                 &out);
    }
  }
  return out;
}

std::string StripAccents(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Char c = DecodeUtf8(text, at);
    if (utf8proc_category(static_cast<utf8proc_int32_t>(c.code)) != UTF8PROC_CATEGORY_MN) {
      out.append(text.substr(at, c.length));
    }
    at += c.length;
  }
  return out;
}

bool IsSpace(char32_t code) {
  if (code < 0x80) return code == ' ' || (code >= '\t' && code <= '\r');
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) ||
         code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

bool IsNumeric(char32_t code) {
  if (code < 0x80) return code >= '0' && code <= '9';
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(code));
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool IsWord(char32_t code) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

}  // namespace flatquant::tokenizer
