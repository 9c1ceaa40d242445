#include "flatquant/tokenizer/text_pattern.h"

#include <algorithm>

#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {

TextPattern TextPattern::Literal(std::string text) {
  TextPattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

TextPattern TextPattern::Expression(std::string_view expression, std::string_view where) {
  TextPattern pattern;
  pattern.regex_.emplace(expression, where);
  return pattern;
}

TextPattern TextPattern::Characters(bool (*matches)(char32_t)) {
  TextPattern pattern;
  pattern.matches_ = matches;
  return pattern;
}

TextPattern TextPattern::Parse(const JsonView& json) {
  if (json.IsString()) return Literal(json.String());
  const JsonView text = json["String"];
  if (!text.missing()) return Literal(text.String());
  const JsonView regex = json["Regex"];
  if (regex.missing()) json.Fail("should have a \"String\" or a \"Regex\"");
  return Expression(regex.String(), regex.where());
}

bool TextPattern::NextMatch(std::string_view text, size_t from, size_t* begin, size_t* end) const {
  if (matches_ != nullptr) {
    for (size_t at = from; at < text.size();) {
      const Utf8Char c = DecodeUtf8(text, at);
      if (matches_(c.code)) {
        *begin = at;
        *end = at + c.length;
        return true;
      }
      at += c.length;
    }
    return false;
  }
  if (literal_.empty()) return false;
  *begin = text.find(literal_, from);
  if (*begin == std::string_view::npos) return false;
  *end = *begin + literal_.size();
  return true;
}

std::string TextPattern::Replace(std::string_view text, std::string_view content) const {
  std::string out;
  out.reserve(text.size());
  size_t done = 0;
  ForEachMatch(text, [&](size_t begin, size_t end) {
    out.append(text.substr(done, begin - done)).append(content);
    done = end;
  });
  return out.append(text.substr(done));
}

SplitBehavior ParseSplitBehavior(const JsonView& json) {
  const std::string name = json.String();
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  json.Unsupported("unknown split behavior \"" + name + "\"");
}

void Split(std::string_view text, Span part, const TextPattern& pattern, SplitBehavior behavior,
           bool invert, std::vector<Span>* pieces) {
  const size_t first = pieces->size();
  bool previous_match = false;
  const auto emit = [&](size_t begin, size_t end, bool match) {
    if (begin == end) return;
    match = match != invert;
    const Span span{part.begin + begin, part.begin + end};
    bool join = false;
    switch (behavior) {
      case SplitBehavior::kRemoved:
        if (match) return;
        break;
      case SplitBehavior::kIsolated:
        break;
      case SplitBehavior::kMergedWithPrevious:
        join = match && !previous_match;
        break;
      case SplitBehavior::kMergedWithNext:
        join = !match && previous_match;
        break;
      case SplitBehavior::kContiguous:
        join = match == previous_match;
        break;
    }
    previous_match = match;
    if (join && pieces->size() > first) {
      pieces->back().end = span.end;
    } else {
      pieces->push_back(span);
    }
  };
  const std::string_view inside = text.substr(part.begin, part.end - part.begin);
  size_t done = 0;
  pattern.ForEachMatch(inside, [&](size_t begin, size_t end) {
    emit(done, begin, false);
    emit(begin, end, true);
    done = end;
  });
  emit(done, inside.size(), false);
}

}  // namespace flatquant::tokenizer
