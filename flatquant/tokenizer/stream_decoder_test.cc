#include <gtest/gtest.h>

#include "flatquant/base/rng.h"
#include "flatquant/tokenizer/test_folder.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant {
namespace {
using flatquant::testing::SourcePath;
using tokenizer::testing::Ids;

std::unique_ptr<Tokenizer> Demo() { return Tokenizer::Open(SourcePath("models/demo-7m")); }

// <0xNN> of demo-7m, which follow its three special tokens.
int32_t ByteId(int byte) { return 3 + byte; }

TEST(StreamDecoderTest, HoldsBackPartsOfCharacters) {
  const auto demo = Demo();
  StreamDecoder stream(*demo);
  EXPECT_EQ(stream.Push(1), "");  // <s>
  EXPECT_EQ(stream.Push(demo->Encode("a", false).front()), "a");
  EXPECT_EQ(stream.Push(ByteId(0xe6)), "");
  EXPECT_EQ(stream.Push(ByteId(0x97)), "");
  EXPECT_EQ(stream.Push(ByteId(0xa5)), "\u65e5");
  EXPECT_EQ(stream.Push(2), "");  // </s>
  EXPECT_EQ(stream.Push(ByteId('\n')), "\n");
  EXPECT_EQ(stream.Finish(), "");
}

TEST(StreamDecoderTest, FinishGivesWhatIsLeftAndStartsAnew) {
  const auto demo = Demo();
  StreamDecoder stream(*demo);
  EXPECT_EQ(stream.Push(ByteId(0xe6)), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
  EXPECT_EQ(stream.Finish(), "");
  const Ids word = demo->Encode("the the", false);
  std::string text;
  for (const int32_t id : word) text += stream.Push(id);
  EXPECT_EQ(text + stream.Finish(), "the the");  // the first space is dropped, no other
}

TEST(StreamDecoderTest, SpecialTokensDoNotSplitCharacters) {
  const auto demo = Demo();
  StreamDecoder stream(*demo);
  stream.Push(ByteId(0xc3));
  EXPECT_EQ(stream.Push(1), "");
  EXPECT_EQ(stream.Push(ByteId(0xa9)), "\u00e9");
}

TEST(StreamDecoderTest, EndlessInvalidBytesStayCheap) {
  const auto demo = Demo();
  StreamDecoder stream(*demo);
  std::string text;
  for (int i = 0; i < 5000; ++i) text += stream.Push(ByteId(0x80));
  text += stream.Finish();
  EXPECT_EQ(text.size(), 5000u * 3);
}

// Random ids: whatever comes, the stream is valid UTF-8; where no byte makes
// earlier ones invalid afterwards, it is what Decode gives.
TEST(StreamDecoderTest, RandomIds) {
  const auto demo = Demo();
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Rng rng(seed);
    const bool bytes = seed % 2 == 0;
    Ids ids;
    for (int i = 0; i < 60; ++i) {
      const bool byte = bytes && rng.Below(2) == 0;
      ids.push_back(static_cast<int32_t>(byte ? ByteId(static_cast<int>(rng.Below(256)))
                                              : 259 + rng.Below(4096 - 259)));
    }
    StreamDecoder stream(*demo);
    std::string text;
    for (const int32_t id : ids) {
      text += stream.Push(id);
      ASSERT_EQ(tokenizer::ValidUtf8Prefix(text), text.size()) << "seed " << seed;
    }
    text += stream.Finish();
    ASSERT_EQ(tokenizer::ValidUtf8Prefix(text), text.size()) << "seed " << seed;
    if (!bytes) {
      ASSERT_EQ(text, demo->Decode(ids, true)) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace flatquant
