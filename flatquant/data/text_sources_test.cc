#include "flatquant/data/text_sources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(SplitLines, LineEndsAreTakenAway) {
  EXPECT_THAT(SplitLines("a\n\nb\r\n c"), ElementsAre("a", "", "b", " c"));
  EXPECT_THAT(SplitLines("a\n"), ElementsAre("a"));
  EXPECT_TRUE(SplitLines("").empty());
}

TEST(StripWhitespace, TakesWhatPythonTakes) {
  EXPECT_EQ(StripWhitespace(" \t\r\n\x1c a b \v\f"), "a b");
  // No-break space, ogham space, em space, ideographic space.
  EXPECT_EQ(StripWhitespace("\u00a0\u1680x\u2003\u3000"), "x");
  EXPECT_EQ(StripWhitespace("\u2028 \u0085"), "");
  // A zero-width space is no white space; neither are letters whose last byte
  // looks like one ("à" ends in 0xa0).
  EXPECT_EQ(StripWhitespace("\u200b"), "\u200b");
  EXPECT_EQ(StripWhitespace("\u00e0\u00e0"), "\u00e0\u00e0");
  // Invalid UTF-8 stays.
  EXPECT_EQ(StripWhitespace("\xe2\x80"), "\xe2\x80");
}

TEST(Wikitext2Text, BlankLinesBecomeEmptyAndOthersKeepTheirNewline) {
  EXPECT_EQ(Wikitext2Text(" \n = A = \n \n b\n"), "\n\n = A = \n\n\n\n\n b\n");
}

TEST(PtbText, StrippedLinesAreJoinedBySpaces) {
  EXPECT_EQ(PtbText(" no it was \n <unk> N\n"), "no it was <unk> N");
}

TEST(JsonDocuments, ReadsTextAndSkipsBlankLines) {
  const char* lines =
      "{\"text\": \"a\\nb\", \"meta\": [1]}\n\n{\"text\": \"\"}\r\n{\"text\": \"\\u00e4\"}";
  EXPECT_THAT(JsonDocuments(lines, "f"), ElementsAre("a\nb", "", "\u00e4"));
  EXPECT_THAT(JsonDocuments(lines, "f", 1), ElementsAre("a\nb"));
}

TEST(JsonDocuments, ErrorsNameFileAndLine) {
  const auto message = [](std::string_view text) -> std::string {
    try {
      JsonDocuments(text, "dir/f.jsonl");
    } catch (const Error& error) {
      EXPECT_EQ(error.name(), "data.bad_json");
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(message("{\"text\": \"a\"}\n\n{\"text\": "),
              HasSubstr("dir/f.jsonl:3: is not valid"));
  EXPECT_THAT(message("[1]"), HasSubstr("dir/f.jsonl:1: is not a JSON object"));
  EXPECT_THAT(message("{\"content\": \"a\"}"), HasSubstr("has no \"text\""));
  EXPECT_THAT(message("{\"text\": 3}"), HasSubstr("not a string"));
  EXPECT_THAT(message("{\"text\": \"\xff\"}"), HasSubstr("is not valid JSON"));
  EXPECT_THAT(message(std::string(100000, '[')), HasSubstr("is not valid JSON"));
}

}  // namespace
}  // namespace flatquant
