// The evaluation strings of wikillama against the ids that the reference
// implementation made of them.

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/base/file.h"
#include "flatquant/data/npy.h"
#include "flatquant/data/token_windows.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::SharedPath;

constexpr const char* kIds = "golden/wikillama-43m/eval_ids.npz";
constexpr const char* kModel = "models/wikillama-43m";

// An array of a .npz archive: a zip whose local header is 30 bytes, the name and
// an extra field; then raw deflate data.
std::vector<int32_t> NpzIds(const std::string& name) {
  const std::string archive = ReadFile(SharedPath(kIds));
  const size_t at = archive.find(name);
  EXPECT_NE(at, std::string::npos);
  const auto u16 = [&](size_t i) {
    return static_cast<unsigned char>(archive[i]) | static_cast<unsigned char>(archive[i + 1]) << 8;
  };
  const size_t header = at - 30;
  const size_t start = at + static_cast<size_t>(u16(header + 26) + u16(header + 28));
  std::string npy(4 << 20, '\0');
  z_stream stream{};
  EXPECT_EQ(inflateInit2(&stream, -MAX_WBITS), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(archive.data())) + start;
  stream.avail_in = static_cast<uInt>(archive.size() - start);
  stream.next_out = reinterpret_cast<Bytef*>(npy.data());
  stream.avail_out = static_cast<uInt>(npy.size());
  EXPECT_EQ(inflate(&stream, Z_FINISH), Z_STREAM_END);
  npy.resize(stream.total_out);
  inflateEnd(&stream);
  const auto path = testing::ScratchFolder() / "ids.npy";
  std::ofstream(path, std::ios::binary) << npy;
  return ReadNpyIds(path).ids;
}

// EXPECT_EQ on half a million ids would print them all.
void ExpectSame(const std::vector<int32_t>& ids, const std::vector<int32_t>& expected) {
  ASSERT_EQ(ids.size(), expected.size());
  const auto [mine, theirs] = std::mismatch(ids.begin(), ids.end(), expected.begin());
  ASSERT_TRUE(mine == ids.end()) << "first difference at " << mine - ids.begin() << ": " << *mine
                                 << ", expected " << *theirs;
}

TEST(GoldenIds, Wikitext2) {
  FLATQUANT_NEEDS_SHARED(kIds);
  const auto tokenizer = Tokenizer::Open(SharedPath(kModel));
  const DataSpec spec{DataSpec::Kind::kWikitext2, SharedPath("data/wiki.test.raw")};
  const std::vector<int32_t> expected = NpzIds("wikitext2_test.npy");
  ASSERT_EQ(expected.size(), 312482u);
  ExpectSame(LoadTokens(spec, *tokenizer), expected);
}

TEST(GoldenIds, C4) {
  FLATQUANT_NEEDS_SHARED(kIds);
  const auto tokenizer = Tokenizer::Open(SharedPath(kModel));
  const DataSpec spec{DataSpec::Kind::kC4, SharedPath("data/c4_val_a.jsonl")};
  const std::vector<int32_t> expected = NpzIds("c4.npy");
  ASSERT_EQ(expected.size(), 524288u);
  const TokenWindows windows = EvaluationWindows(spec, *tokenizer, 2048, 0, 16384);
  EXPECT_EQ(windows.count, 256);
  ExpectSame(windows.ids, expected);
}

// The calibration windows of the reference lie somewhere in our training string.
TEST(GoldenIds, CalibrationWindowsComeFromTheTrainingString) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/calib_ids_128x2048.npy");
  const auto tokenizer = Tokenizer::Open(SharedPath(kModel));
  const DataSpec spec{DataSpec::Kind::kWikitext2, SharedPath("data/wiki.train.1mb.raw")};
  const std::vector<int32_t> tokens = LoadTokens(spec, *tokenizer);
  const NpyIds golden = ReadNpyIds(SharedPath("golden/wikillama-43m/calib_ids_128x2048.npy"));
  for (int64_t row = 0; row < golden.rows; ++row) {
    const auto begin = golden.ids.begin() + row * golden.cols;
    EXPECT_NE(std::search(tokens.begin(), tokens.end(), begin, begin + golden.cols), tokens.end())
        << "row " << row;
  }
}

// The project's own corpus through the project's own model: no shared inputs.
TEST(GoldenIds, DemoDocumentsStandBetweenBosAndEos) {
  const auto demo = testing::SourcePath("models/demo-7m");
  const auto tokenizer = Tokenizer::Open(demo);
  const DataSpec spec{DataSpec::Kind::kJsonl, demo / "selfgen-eval.jsonl"};
  const std::vector<int32_t> ids = LoadTokens(spec, *tokenizer);
  EXPECT_EQ(ids.front(), 1);
  EXPECT_EQ(ids.back(), 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1), 245);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2), 245);
  EXPECT_GE(EvaluationWindows(spec, *tokenizer, 512, 0, 4096).count, 12);
}

}  // namespace
}  // namespace flatquant
