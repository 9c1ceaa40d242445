#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace flatquant::tokenizer {

// A regular expression as tokenizer files write it: Oniguruma's Ruby syntax,
// which Hugging Face's library uses, run by PCRE2 (compiled to machine code
// where the CPU allows). The two differ in what \s, \w and \h mean; Translate
// rewrites those. Immutable; any number of threads may search at a time.
class Regex {
 public:
  // where: the place in the file, for messages. Errors: tokenizer.bad_regex,
  // tokenizer.unsupported (nested or intersected character classes).
  Regex(std::string_view pattern, std::string_view where);

  // The first match in valid UTF-8 text at or after byte `from`. Errors:
  // tokenizer.regex_limit when the pattern backtracks without bound.
  bool Find(std::string_view text, size_t from, size_t* begin, size_t* end) const;

  // Walks over all matches as Hugging Face's library does: an empty match right
  // behind the previous match does not count.
  class Scanner {
   public:
    Scanner(const Regex& regex, std::string_view text) : regex_(regex), text_(text) {}
    bool Next(size_t* begin, size_t* end);

   private:
    const Regex& regex_;
    std::string_view text_;
    size_t from_ = 0;
    size_t last_end_ = std::string_view::npos;
  };

  // The PCRE2 spelling of an Oniguruma pattern.
  static std::string Translate(std::string_view pattern, std::string_view where);

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
  std::string where_;
};

}  // namespace flatquant::tokenizer
