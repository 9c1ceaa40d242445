#define PCRE2_CODE_UNIT_WIDTH 8
#include "flatquant/tokenizer/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <new>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

// The insides of character classes with Oniguruma's meaning. PCRE2's own \s has
// U+180E besides, and its \w lacks marks and has all of \p{N}.
constexpr std::string_view kSpace = "\\t-\\r\\x{85}\\p{Z}";
constexpr std::string_view kWord = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kHexDigit = "0-9A-Fa-f";

// Enough for any honest pattern on any text (they backtrack once per character
// at most); a pattern of exponential cost ends within seconds.
constexpr uint32_t kMatchLimit = 100'000'000;

// What a thread needs to search. One match pair is all that anybody reads.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 4 << 20, nullptr);

  Scratch() {
    if (data == nullptr || context == nullptr || stack == nullptr) throw std::bad_alloc();
    pcre2_jit_stack_assign(context, nullptr, stack);
    pcre2_set_match_limit(context, kMatchLimit);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

std::string PcreMessage(int code) {
  PCRE2_UCHAR buffer[256];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

std::string_view ClassBody(char escape) {
  switch (escape) {
    case 's':
    case 'S':
      return kSpace;
    case 'w':
    case 'W':
      return kWord;
    case 'h':
    case 'H':
      return kHexDigit;
    default:
      return {};
  }
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;

  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() { pcre2_code_free(code); }
};

std::string Regex::Translate(std::string_view pattern, std::string_view where) {
  const auto unsupported = [&](std::string_view what) {
    throw Error("tokenizer.unsupported", where, what,
                "no known tokenizer uses this; please report it");
  };
  std::string out;
  bool in_class = false;
  size_t class_start = 0;  // where a ']' would be a literal
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char escape = pattern[++i];
      const std::string_view body = ClassBody(escape);
      const bool negated = escape == 'S' || escape == 'W' || escape == 'H';
      if (escape == 'u' && i + 4 < pattern.size() && pattern[i + 1] != '{') {
        out.append("\\x{").append(pattern.substr(i + 1, 4)).append("}");
        i += 4;
      } else if (body.empty()) {
        out.append({c, escape});
      } else if (in_class) {
        if (negated) unsupported("a negated shorthand such as \\S inside a character class");
        out.append(body);
      } else {
        out.append(negated ? "[^" : "[").append(body).append("]");
      }
      continue;
    }
    if (!in_class && c == '[') {
      in_class = true;
      class_start = i + 1;
      if (class_start < pattern.size() && pattern[class_start] == '^') ++class_start;
    } else if (in_class && c == '[') {
      if (i + 1 >= pattern.size() || pattern[i + 1] != ':') unsupported("a nested character class");
      const size_t end = pattern.find(":]", i + 2);
      if (end == std::string_view::npos) unsupported("a nested character class");
      out.append(pattern.substr(i, end + 2 - i));
      i = end + 1;
      continue;
    } else if (in_class && c == ']' && i != class_start) {
      in_class = false;
    } else if (in_class && c == '&' && i + 1 < pattern.size() && pattern[i + 1] == '&') {
      unsupported("an intersection of character classes");
    }
    out.push_back(c);
  }
  return out;
}

Regex::Regex(std::string_view pattern, std::string_view where) : where_(where) {
  const std::string translated = Translate(pattern, where);
  auto code = std::make_shared<Code>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  // In Ruby's syntax ^ and $ always stand at line ends.
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                             &error, &offset, nullptr);
  if (code->code == nullptr) {
    throw Error(
        "tokenizer.bad_regex", where,
        PcreMessage(error) + " at offset " + std::to_string(offset) + " of \"" + translated + "\"",
        "download the tokenizer's files again");
  }
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

bool Regex::Find(std::string_view text, size_t from, size_t* begin, size_t* end) const {
  thread_local Scratch scratch;
  // PCRE2 wants a pointer even for an empty subject.
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
  const int result = code_->jit ? pcre2_jit_match(code_->code, subject, text.size(), from,
                                                  PCRE2_NO_UTF_CHECK, scratch.data, scratch.context)
                                : pcre2_match(code_->code, subject, text.size(), from,
                                              PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
  if (result == PCRE2_ERROR_NOMATCH) return false;
  if (result < 0) {
    throw Error("tokenizer.regex_limit", where_,
                "the pattern failed on the text: " + PcreMessage(result),
                "check the tokenizer's pattern");
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(scratch.data);
  // \K in a lookahead can put the start behind the end.
  *begin = std::min(offsets[0], offsets[1]);
  *end = offsets[1];
  return true;
}

bool Regex::Scanner::Next(size_t* begin, size_t* end) {
  while (from_ <= text_.size()) {
    if (!regex_.Find(text_, from_, begin, end)) {
      from_ = text_.size() + 1;
      return false;
    }
    if (*begin == *end && *end == last_end_) {
      from_ += from_ < text_.size() ? DecodeUtf8(text_, from_).length : 1;
      continue;
    }
    // A lookbehind with \K may reach before what was already taken.
    *begin = std::max(*begin, last_end_ == std::string_view::npos ? 0 : last_end_);
    *end = std::max(*end, *begin);
    from_ = *end;
    last_end_ = *end;
    return true;
  }
  return false;
}

}  // namespace flatquant::tokenizer
