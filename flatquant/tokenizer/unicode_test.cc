#include "flatquant/tokenizer/unicode.h"

#include <gtest/gtest.h>

#include "flatquant/tokenizer/byte_level.h"

namespace flatquant::tokenizer {
namespace {

TEST(UnicodeTest, InvalidBytesBecomeReplacementCharacters) {
  EXPECT_EQ(ReplaceInvalidUtf8("plain"), "plain");
  EXPECT_EQ(ReplaceInvalidUtf8("a\xffz"), "a\uFFFDz");
  // The Unicode standard's table 3-8: one U+FFFD per maximal subpart.
  EXPECT_EQ(ReplaceInvalidUtf8("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(ReplaceInvalidUtf8("\xC0\xAF"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(ReplaceInvalidUtf8("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // surrogate
  EXPECT_EQ(ReplaceInvalidUtf8("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(ReplaceInvalidUtf8("\xE6\x97"), "\uFFFD");  // cut short
  EXPECT_EQ(ValidUtf8Prefix("ab\xE6\x97\xA5\xE6\x97"), 5u);
}

TEST(UnicodeTest, Utf8RoundTrip) {
  for (const char32_t code : {0x0u, 0x7fu, 0x80u, 0x7ffu, 0x800u, 0xffffu, 0x10000u, 0x10ffffu}) {
    std::string text;
    AppendUtf8(code, &text);
    EXPECT_EQ(ValidUtf8Prefix(text), text.size());
    EXPECT_EQ(DecodeUtf8(text, 0).code, code);
    EXPECT_EQ(DecodeUtf8(text, 0).length, text.size());
  }
}

TEST(UnicodeTest, NormalForms) {
  EXPECT_EQ(Normalize("a\u0301", NormalForm::kNfc), "\u00e1");
  EXPECT_EQ(Normalize("\u00e1", NormalForm::kNfd), "a\u0301");
  EXPECT_EQ(Normalize("\u1112\u1161\u11ab", NormalForm::kNfc), "\ud55c");  // Hangul
  EXPECT_EQ(Normalize("\ud55c", NormalForm::kNfd), "\u1112\u1161\u11ab");
  EXPECT_EQ(Normalize("\ufb01\u2460", NormalForm::kNfkc), "fi1");
  EXPECT_EQ(Normalize("\ufb01\u2460", NormalForm::kNfc), "\ufb01\u2460");
  // Marks are ordered by class (dot below 220 before acute 230) before composing.
  EXPECT_EQ(Normalize("a\u0301\u0323", NormalForm::kNfd), "a\u0323\u0301");
  EXPECT_EQ(Normalize("a\u0301\u0323", NormalForm::kNfc), "\u1ea1\u0301");
  // A composition exclusion stays decomposed; a singleton is replaced.
  EXPECT_EQ(Normalize("\u0958", NormalForm::kNfc), "\u0915\u093c");
  EXPECT_EQ(Normalize("\u212b", NormalForm::kNfc), "\u00c5");
  EXPECT_EQ(Normalize("", NormalForm::kNfc), "");
}

TEST(UnicodeTest, LongRunsOfMarksAreOrderedQuickly) {
  // Alternating classes: a bubble sort would need 10^11 steps.
  std::string text = "e";
  std::string below;
  std::string above;
  for (int i = 0; i < 300000; ++i) {
    text += "\u0301\u0323";
    below += "\u0323";
    above += "\u0301";
  }
  EXPECT_TRUE(Normalize(text, NormalForm::kNfd) == "e" + below + above);
}

TEST(UnicodeTest, CharacterClasses) {
  for (const char32_t space : {0x20u, 0x9u, 0xdu, 0x85u, 0xa0u, 0x2028u, 0x3000u}) {
    EXPECT_TRUE(IsSpace(space)) << static_cast<uint32_t>(space);
  }
  for (const char32_t other : {0x180eu, 0x200bu, 0xfeffu, 0x41u}) EXPECT_FALSE(IsSpace(other));
  EXPECT_TRUE(IsNumeric('7'));
  EXPECT_TRUE(IsNumeric(U'\u2167'));  // Roman numeral eight (Nl)
  EXPECT_TRUE(IsNumeric(U'\u00bd'));  // one half (No)
  EXPECT_FALSE(IsNumeric('a'));
  EXPECT_TRUE(IsWord('_'));
  EXPECT_TRUE(IsWord(U'\u0301'));
  EXPECT_FALSE(IsWord('-'));
  EXPECT_FALSE(IsWord(U'\u00bd'));
}

TEST(UnicodeTest, CaseAndAccents) {
  EXPECT_EQ(Lowercase("\u00c4BC \u0130"), "\u00e4bc i\u0307");
  EXPECT_EQ(StripAccents("a\u0301b"), "ab");
}

TEST(ByteLevelTest, IsABijection) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(CharToByte(ByteToChar()[byte]), byte);
    all.push_back(static_cast<char>(byte));
  }
  std::string back;
  EXPECT_TRUE(PrintableToBytes(BytesToPrintable(all), &back));
  EXPECT_EQ(back, all);
  EXPECT_EQ(BytesToPrintable(" \n"), "\u0120\u010a");
  EXPECT_FALSE(PrintableToBytes("a b", &back));  // a space is no printable form
}

}  // namespace
}  // namespace flatquant::tokenizer
