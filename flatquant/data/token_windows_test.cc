#include "flatquant/data/token_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <set>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/data/byte_tokenizer.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kVocab = ByteTokenizer::kVocab;

DataSpec Source(const std::string& kind, const std::string& bytes) {
  const auto path = testing::ScratchFolder() / "source";
  std::ofstream(path, std::ios::binary) << bytes;
  return DataSpec::Parse(kind + ":" + path.string());
}

// What the tokenizer got, "<" for BOS and ">" for EOS.
std::string Loaded(const std::string& kind, const std::string& bytes) {
  const ByteTokenizer tokenizer;
  return tokenizer.Decode(LoadTokens(Source(kind, bytes), tokenizer), false);
}

std::string Text(const TokenWindows& windows, int64_t i) {
  return ByteTokenizer().Decode({windows.window(i), static_cast<size_t>(windows.length)}, false);
}

std::string Npy(const std::string& shape, const std::string& data) {
  const std::string header = "{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + "}";
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header +
         data;
}

std::string ErrorMessage(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(DataSpec, ParsesKindAndPath) {
  const DataSpec spec = DataSpec::Parse("wikitext2:/data/wiki:1.raw");
  EXPECT_EQ(spec.kind, DataSpec::Kind::kWikitext2);
  EXPECT_EQ(spec.path, "/data/wiki:1.raw");
  for (const char* kind : {"wikitext2", "c4", "pile", "ptb", "text", "jsonl", "ids"}) {
    EXPECT_EQ(DataSpec::Parse(std::string(kind) + ":x").KindName(), kind);
  }
}

TEST(DataSpec, ErrorsNameTheKinds) {
  for (const char* bad : {"", "wiki.raw", "text:", "Text:a", ":a", "html:a"}) {
    EXPECT_THAT(ErrorMessage([&] { DataSpec::Parse(bad); }),
                AllOf(HasSubstr("[data.bad_spec]"),
                      HasSubstr("wikitext2, c4, pile, ptb, text, jsonl, ids")))
        << bad;
  }
}

TEST(DataSpec, ListsSplitOnlyBeforeAKind) {
  const auto specs = DataSpec::ParseList("text:a,b.txt,jsonl:c.jsonl,ids:d");
  ASSERT_EQ(specs.size(), 3u);
  EXPECT_EQ(specs[0].path, "a,b.txt");
  EXPECT_EQ(specs[1].path, "c.jsonl");
  EXPECT_EQ(specs[2].kind, DataSpec::Kind::kIds);
  EXPECT_THAT(ErrorMessage([] { DataSpec::ParseList("text:a,ids:"); }), HasSubstr("data.bad_spec"));
}

TEST(LoadTokens, EveryKindFollowsItsRule) {
  const std::string documents = "{\"text\": \"a b\"}\n{\"text\": \"c\"}\n";
  EXPECT_EQ(Loaded("wikitext2", " \n = A = \n"), "<\n\n = A = \n");
  EXPECT_EQ(Loaded("c4", documents), "<a b c");
  EXPECT_EQ(Loaded("pile", documents), "<a b\n\nc");
  EXPECT_EQ(Loaded("ptb", " a b \n c \n"), "<a b c");
  EXPECT_EQ(Loaded("text", "a\n\nb \n"), "<a\n\nb \n");
  EXPECT_EQ(Loaded("jsonl", documents), "<a b><c>");
  EXPECT_EQ(Loaded("ids", Npy("(2, 2)", "abcd")), "abcd");
}

TEST(LoadTokens, EmptySourcesAreErrors) {
  for (const char* kind : {"wikitext2", "c4", "pile", "ptb", "text", "jsonl"}) {
    EXPECT_THAT(ErrorMessage([&] { Loaded(kind, ""); }), HasSubstr("[data.empty]")) << kind;
  }
  EXPECT_THAT(ErrorMessage([&] { Loaded("ids", Npy("(0,)", "")); }), HasSubstr("[data.empty]"));
}

TEST(EvaluationWindows, ConsecutiveAndComplete) {
  const ByteTokenizer tokenizer;
  const DataSpec spec = Source("text", "abcdefg");
  const TokenWindows windows = EvaluationWindows(spec, tokenizer, 3, 0, kVocab);
  EXPECT_EQ(windows.count, 2);
  EXPECT_EQ(Text(windows, 0), "<ab");
  EXPECT_EQ(Text(windows, 1), "cde");
  EXPECT_EQ(windows.ids.size(), 6u);
  EXPECT_EQ(EvaluationWindows(spec, tokenizer, 3, 1, kVocab).count, 1);
  EXPECT_EQ(EvaluationWindows(spec, tokenizer, 8, 5, kVocab).count, 1);
  EXPECT_THAT(ErrorMessage([&] { EvaluationWindows(spec, tokenizer, 9, 0, kVocab); }),
              AllOf(HasSubstr("has 8 tokens"), HasSubstr("[data.too_short]")));
}

TEST(EvaluationWindows, C4StopsWhereTheFieldStops) {
  const ByteTokenizer tokenizer;
  // 1,200 documents of one letter: "<x x x ..." of the first 1,100 are 2,200 ids.
  std::string documents;
  for (int i = 0; i < 1200; ++i) documents += "{\"text\": \"x\"}\n";
  const DataSpec spec = Source("c4", documents);
  EXPECT_EQ(EvaluationWindows(spec, tokenizer, 2, 0, kVocab).count, 256);
  EXPECT_EQ(EvaluationWindows(spec, tokenizer, 100, 0, kVocab).count, 22);
  EXPECT_EQ(LoadTokens(spec, tokenizer).size(), 2400u);
}

TEST(EvaluationWindows, RowsOfIdFiles) {
  const ByteTokenizer tokenizer;
  const DataSpec spec = Source("ids", Npy("(3, 2)", "abcdef"));
  EXPECT_EQ(EvaluationWindows(spec, tokenizer, 2, 0, kVocab).count, 3);
  const TokenWindows two = EvaluationWindows(spec, tokenizer, 2, 2, kVocab);
  EXPECT_EQ(two.count, 2);
  EXPECT_EQ(Text(two, 1), "cd");
  EXPECT_THAT(ErrorMessage([&] { EvaluationWindows(spec, tokenizer, 3, 0, kVocab); }),
              AllOf(HasSubstr("rows of 2 tokens"), HasSubstr("[data.row_length]")));
  const DataSpec empty = Source("ids", Npy("(0, 2)", ""));
  EXPECT_THAT(ErrorMessage([&] { EvaluationWindows(empty, tokenizer, 2, 0, kVocab); }),
              HasSubstr("[data.too_short]"));
}

TEST(EvaluationWindows, IdsOutsideTheVocabulary) {
  const ByteTokenizer tokenizer;
  EXPECT_THAT(ErrorMessage([&] { EvaluationWindows(Source("text", "ab"), tokenizer, 2, 0, 98); }),
              AllOf(HasSubstr("token 0 is 256"), HasSubstr("[data.id_range]")));
  EXPECT_THAT(ErrorMessage([&] {
                EvaluationWindows(Source("ids", Npy("(2,)", "ab")), tokenizer, 2, 0, 98);
              }),
              AllOf(HasSubstr("token 1 is 98"), HasSubstr("98 entries")));
}

TEST(CalibrationWindows, RandomPlacesReproducibly) {
  const ByteTokenizer tokenizer;
  const std::string text = "abcdefghijklmnopqrstuvwxyz";
  const DataSpec spec = Source("text", text);
  const auto take = [&](uint64_t seed) {
    return CalibrationWindows(spec, tokenizer, 20, 200, seed, kVocab);
  };
  const TokenWindows windows = take(1);
  EXPECT_EQ(windows.count, 200);
  std::set<std::string> distinct;
  const std::string whole = "<" + text;
  for (int64_t i = 0; i < windows.count; ++i) {
    EXPECT_THAT(whole, HasSubstr(Text(windows, i)));
    distinct.insert(Text(windows, i));
  }
  // 27 - 20 + 1 places; 200 draws miss one of them with probability 8 * (7/8)^200.
  EXPECT_EQ(distinct.size(), 8u);
  EXPECT_EQ(take(1).ids, windows.ids);
  EXPECT_NE(take(2).ids, windows.ids);
  EXPECT_EQ(take(1).Fingerprint(), windows.Fingerprint());
  EXPECT_NE(take(2).Fingerprint(), windows.Fingerprint());
  EXPECT_THAT(ErrorMessage([&] { CalibrationWindows(spec, tokenizer, 28, 1, 0, kVocab); }),
              HasSubstr("[data.too_short]"));
  EXPECT_EQ(CalibrationWindows(spec, tokenizer, 27, 3, 0, kVocab).count, 3);
}

TEST(CalibrationWindows, RowsOfIdFilesComeUnchanged) {
  const ByteTokenizer tokenizer;
  const DataSpec spec = Source("ids", Npy("(3, 2)", "abcdef"));
  const TokenWindows windows = CalibrationWindows(spec, tokenizer, 2, 2, 7, kVocab);
  EXPECT_EQ(Text(windows, 0), "ab");
  EXPECT_EQ(Text(windows, 1), "cd");
  EXPECT_THAT(ErrorMessage([&] { CalibrationWindows(spec, tokenizer, 2, 4, 7, kVocab); }),
              AllOf(HasSubstr("has 3 rows"), HasSubstr("[data.too_short]")));
}

TEST(TokenWindows, FingerprintIsStable) {
  // FNV-1a by hand-written reference over the words 1, 2, 5, 6.
  const TokenWindows windows{1, 2, {5, 6}};
  uint64_t hash = 0xcbf29ce484222325u;
  for (unsigned byte : {1u, 0u, 0u, 0u, 2u, 0u, 0u, 0u, 5u, 0u, 0u, 0u, 6u, 0u, 0u, 0u}) {
    hash ^= byte;
    hash *= 0x100000001b3u;
  }
  char expected[32];
  std::snprintf(expected, sizeof(expected), "fnv1a64:%016lx", static_cast<unsigned long>(hash));
  EXPECT_EQ(windows.Fingerprint(), expected);
}

}  // namespace
}  // namespace flatquant
