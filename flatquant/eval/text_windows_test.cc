#include "flatquant/eval/text_windows.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/data/byte_tokenizer.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::ByteTokenizer;

TextWindows Read(const std::string& text, int64_t seqlen, int64_t stride, int64_t limit = 0) {
  const auto path = testing::ScratchFolder() / "text";
  std::ofstream(path) << text;
  return ReadTextWindows(DataSpec::Parse("text:" + path.string()), ByteTokenizer(), seqlen, stride,
                         limit, ByteTokenizer::kVocab);
}

std::string Places(const std::vector<TextWindows::Window>& windows) {
  std::string text;
  for (const auto& window : windows) {
    text += std::to_string(window.begin) + "+" + std::to_string(window.length) + ":" +
            std::to_string(window.scored) + " ";
  }
  return text;
}

TEST(TextWindows, OneAfterAnother) {
  // BOS and 10 bytes: two windows of 5.
  for (int64_t stride : {0, 5}) {
    const TextWindows text = Read("0123456789", 5, stride);
    EXPECT_EQ(Places(text.windows), "0+5:4 5+5:4 ");
    EXPECT_EQ(text.scored_tokens(), 8);
    EXPECT_EQ(text.name, "text");
    EXPECT_EQ(text.tokens(text.windows[1])[0], '4');
  }
  EXPECT_EQ(Places(Read("0123456789", 5, 0, 1).windows), "0+5:4 ");
}

TEST(TextWindows, StridesScoreEveryTokenOnce) {
  EXPECT_EQ(Places(Read("0123456789", 5, 2).windows), "0+5:4 2+5:2 4+5:2 6+4:1 ");
  EXPECT_EQ(Places(Read("0123456789", 5, 2, 2).windows), "0+5:4 2+5:2 ");
  for (int64_t tokens : {2, 7, 64, 101}) {
    for (int64_t stride : {1, 3, 7}) {
      int64_t next = 1;
      for (const auto& window : StridedWindows(tokens, 8, stride)) {
        EXPECT_LT(window.scored, window.length);
        EXPECT_LE(window.length, 8);
        EXPECT_EQ(window.begin + window.length - window.scored, next);
        next = window.begin + window.length;
      }
      EXPECT_EQ(next, tokens);
    }
  }
}

TEST(TextWindows, RefusesStridesThatLeaveOutTokensOrJoinRows) {
  EXPECT_THROW(Read("0123456789", 5, 6), Error);
  std::string npy = "\x93NUMPY\x01";
  npy += std::string("\0\x76\0", 3);
  std::string header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 5), }";
  header.resize(0x76 - 1, ' ');
  npy += header + "\n" + std::string(20, '\0');
  const auto path = testing::ScratchFolder() / "rows.npy";
  std::ofstream(path, std::ios::binary) << npy;
  const DataSpec spec = DataSpec::Parse("ids:" + path.string());
  EXPECT_EQ(ReadTextWindows(spec, ByteTokenizer(), 5, 0, 0, 300).windows.size(), 1u);
  EXPECT_THROW(ReadTextWindows(spec, ByteTokenizer(), 5, 2, 0, 300), Error);
}

TEST(TextWindows, FingerprintsTellTextsAndWindowsApart) {
  const uint64_t one = Read("0123456789", 5, 0).Fingerprint();
  EXPECT_EQ(one, Read("0123456789", 5, 5).Fingerprint());
  EXPECT_NE(one, Read("0123456989", 5, 0).Fingerprint());
  EXPECT_NE(one, Read("0123456789", 5, 0, 1).Fingerprint());
  EXPECT_NE(one, Read("0123456789", 5, 4).Fingerprint());
}

}  // namespace
}  // namespace flatquant
