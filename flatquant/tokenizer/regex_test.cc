#include "flatquant/tokenizer/regex.h"

#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/text_pattern.h"

namespace flatquant::tokenizer {
namespace {

std::vector<std::string> Matches(std::string_view pattern, std::string_view text) {
  const Regex regex(pattern, "test");
  Regex::Scanner scanner(regex, text);
  std::vector<std::string> matches;
  size_t begin;
  size_t end;
  while (scanner.Next(&begin, &end)) matches.emplace_back(text.substr(begin, end - begin));
  return matches;
}

using Strings = std::vector<std::string>;

std::string ErrorName(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.name();
  }
  return "none";
}

TEST(RegexTest, ShorthandsMeanWhatOnigurumaMeans) {
  // U+180E is white space to PCRE2's \s, but neither to Oniguruma nor Unicode.
  EXPECT_EQ(Matches(R"(\S+)", "a\u180eb c\u00a0d\u0085e"), (Strings{"a\u180eb", "c", "d", "e"}));
  EXPECT_EQ(Matches(R"([^\s]+)", "a\u180eb c"), (Strings{"a\u180eb", "c"}));
  // Marks are word characters, fractions are not.
  EXPECT_EQ(Matches(R"(\w+)", "e\u0301_1 \u00bd"), (Strings{"e\u0301_1"}));
  EXPECT_EQ(Matches(R"(\h+)", "xffg"), (Strings{"ff"}));
  EXPECT_EQ(Matches(R"([\u4e00-\u9fff]+)", "a\u65e5\u672cb"), (Strings{"\u65e5\u672c"}));
}

TEST(RegexTest, EmptyMatchesDoNotFollowAMatch) {
  EXPECT_EQ(Matches("b*", "abb\u00e9"), (Strings{"", "bb", ""}));
  EXPECT_EQ(Matches("x", ""), Strings{});
}

TEST(RegexTest, CaselessGroupsFoldUnicode) {
  EXPECT_EQ(Matches("(?i:'s|'ll)", "'S 'LL '\u017f 'x"), (Strings{"'S", "'LL", "'\u017f"}));
}

TEST(RegexTest, BadPatternsAreNamed) {
  EXPECT_EQ(ErrorName([] { Regex("(", "test"); }), "tokenizer.bad_regex");
  EXPECT_EQ(ErrorName([] { Regex("[a", "test"); }), "tokenizer.bad_regex");
  EXPECT_EQ(ErrorName([] { Regex("\\", "test"); }), "tokenizer.bad_regex");
  EXPECT_EQ(ErrorName([] { Regex(std::string(100000, '('), "test"); }), "tokenizer.bad_regex");
  EXPECT_EQ(ErrorName([] { Regex("[a[bc]]", "test"); }), "tokenizer.unsupported");
  EXPECT_EQ(ErrorName([] { Regex("[a-z&&[^b]]", "test"); }), "tokenizer.unsupported");
  EXPECT_EQ(ErrorName([] { Regex(R"([\S])", "test"); }), "tokenizer.unsupported");
}

TEST(RegexTest, EndlessBacktrackingIsAnError) {
  const Regex regex("^(a|aa|a)*$", "test");
  size_t begin;
  size_t end;
  EXPECT_EQ(ErrorName([&] { regex.Find(std::string(200, 'a') + "b", 0, &begin, &end); }),
            "tokenizer.regex_limit");
}

TEST(RegexTest, LongMatchesNeedNoStack) {
  const std::string text = std::string(3'000'000, 'a') + std::string(3'000'000, ' ') + "b";
  const Regex regex(R"(\p{L}+|\s*[\r\n]+|\s+(?!\S)|\s+)", "test");
  Regex::Scanner scanner(regex, text);
  std::vector<size_t> ends;
  size_t begin;
  size_t end;
  while (scanner.Next(&begin, &end)) ends.push_back(end);
  EXPECT_EQ(ends, (std::vector<size_t>{3'000'000, 5'999'999, 6'000'000, 6'000'001}));
}

Strings SplitAt(std::string_view text, const TextPattern& pattern, SplitBehavior behavior,
                bool invert = false) {
  std::vector<Span> spans;
  Split(text, {0, text.size()}, pattern, behavior, invert, &spans);
  Strings pieces;
  for (const Span& span : spans)
    pieces.emplace_back(text.substr(span.begin, span.end - span.begin));
  return pieces;
}

// The examples of Hugging Face's documentation of SplitDelimiterBehavior.
TEST(SplitTest, Behaviors) {
  const TextPattern dash = TextPattern::Literal("-");
  const std::string text = "the-final--countdown";
  EXPECT_EQ(SplitAt(text, dash, SplitBehavior::kRemoved), (Strings{"the", "final", "countdown"}));
  EXPECT_EQ(SplitAt(text, dash, SplitBehavior::kIsolated),
            (Strings{"the", "-", "final", "-", "-", "countdown"}));
  EXPECT_EQ(SplitAt(text, dash, SplitBehavior::kMergedWithPrevious),
            (Strings{"the-", "final-", "-", "countdown"}));
  EXPECT_EQ(SplitAt(text, dash, SplitBehavior::kMergedWithNext),
            (Strings{"the", "-final", "-", "-countdown"}));
  EXPECT_EQ(SplitAt(text, dash, SplitBehavior::kContiguous),
            (Strings{"the", "-", "final", "--", "countdown"}));
}

TEST(SplitTest, InvertAndEdges) {
  const TextPattern word = TextPattern::Expression(R"(\w+)", "test");
  EXPECT_EQ(SplitAt(" ab cd", word, SplitBehavior::kRemoved, true), (Strings{"ab", "cd"}));
  EXPECT_EQ(SplitAt("", word, SplitBehavior::kIsolated), Strings{});
  EXPECT_EQ(SplitAt("ab", word, SplitBehavior::kRemoved), Strings{});
  EXPECT_EQ(SplitAt("ab", TextPattern::Literal(""), SplitBehavior::kIsolated), Strings{"ab"});
  EXPECT_EQ(TextPattern::Literal("aa").Replace("aaab", "x"), "xab");
}

}  // namespace
}  // namespace flatquant::tokenizer
