// LibTorch and libsentencepiece each bring a copy of Protocol Buffers; both must
// work in one process (flatquant/tokenizer/sentencepiece_module/module_api.h).

#include <gtest/gtest.h>

#include <filesystem>

#include "flatquant/tokenizer/tokenizer.h"
#include "tests/support/shared_data.h"
#if FLATQUANT_WITH_COMPRESS
#include "flatquant/compress/quantize.h"
#endif

namespace flatquant {
namespace {

TEST(OneProcessTest, SentencePieceWorksBesideLibTorch) {
#if defined(__SANITIZE_ADDRESS__) && FLATQUANT_WITH_COMPRESS
  GTEST_SKIP() << "the sanitizers' run-time cannot keep the two libraries apart";
#endif
#if FLATQUANT_WITH_COMPRESS
  EXPECT_FALSE(MethodNames().empty());  // LibTorch is really linked
#endif
  const auto folder = testing::ScratchFolder();
  std::filesystem::copy_file(testing::SourcePath("models/demo-7m/tokenizer.model"),
                             folder / "tokenizer.model");
  const auto sentencepiece = Tokenizer::Open(folder);
  const auto json = Tokenizer::Open(testing::SourcePath("models/demo-7m"));
  const auto ids = sentencepiece->Encode("The history of the city", false);
  EXPECT_GT(ids.size(), 3u);
  EXPECT_EQ(ids, json->Encode("The history of the city", false));
  EXPECT_EQ(sentencepiece->Decode(ids, true), "The history of the city");
}

}  // namespace
}  // namespace flatquant
