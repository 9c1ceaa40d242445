#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/json_view.h"
#include "flatquant/tokenizer/regex.h"

namespace flatquant::tokenizer {

// A part of a text: bytes [begin, end).
struct Span {
  size_t begin;
  size_t end;
};

// What a rule looks for: a literal string, a regular expression or a class of
// characters (each such character is a match of its own).
class TextPattern {
 public:
  static TextPattern Literal(std::string text);
  static TextPattern Expression(std::string_view pattern, std::string_view where);
  static TextPattern Characters(bool (*matches)(char32_t));
  // {"String": "..."} or {"Regex": "..."}, or a plain string.
  static TextPattern Parse(const JsonView& json);

  // Calls visit(begin, end) for every match, in order, without overlaps.
  template <typename Visit>
  void ForEachMatch(std::string_view text, Visit visit) const;

  // Every match replaced by `content` as it stands.
  std::string Replace(std::string_view text, std::string_view content) const;

 private:
  bool NextMatch(std::string_view text, size_t from, size_t* begin, size_t* end) const;

  std::string literal_;
  std::optional<Regex> regex_;
  bool (*matches_)(char32_t) = nullptr;
};

// What becomes of a match when text is cut at it (Hugging Face's names).
enum class SplitBehavior {
  kRemoved,             // dropped
  kIsolated,            // a piece of its own
  kMergedWithPrevious,  // joins the text before it
  kMergedWithNext,      // joins the text behind it
  kContiguous           // neighbouring matches form one piece
};

SplitBehavior ParseSplitBehavior(const JsonView& json);

// Appends the non-empty pieces of text[part] to *pieces. invert: what the
// pattern does not match counts as the match.
void Split(std::string_view text, Span part, const TextPattern& pattern, SplitBehavior behavior,
           bool invert, std::vector<Span>* pieces);

template <typename Visit>
void TextPattern::ForEachMatch(std::string_view text, Visit visit) const {
  size_t begin = 0;
  size_t end = 0;
  if (regex_) {
    Regex::Scanner scanner(*regex_, text);
    while (scanner.Next(&begin, &end)) visit(begin, end);
    return;
  }
  for (size_t from = 0; NextMatch(text, from, &begin, &end); from = end) visit(begin, end);
}

}  // namespace flatquant::tokenizer
