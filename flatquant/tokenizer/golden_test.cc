// Every expected id and text of ../shared/golden/tokenizers, and WikiText-2 as
// the field evaluates it.
#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "flatquant/base/file.h"
#include "flatquant/tokenizer/tokenizer.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {
namespace fs = std::filesystem;
using testing::ScratchFolder;
using testing::SharedPath;
using testing::SourcePath;

void CheckGolden(const Tokenizer& tokenizer, const std::string& name) {
  std::istringstream lines(ReadFile(SharedPath("golden/tokenizers/" + name + ".jsonl")));
  std::string line;
  int count = 0;
  for (; std::getline(lines, line); ++count) {
    const auto golden = nlohmann::json::parse(line);
    const auto text = golden["text"].get<std::string>();
    const auto ids = golden["ids"].get<std::vector<int32_t>>();
    ASSERT_EQ(tokenizer.Encode(text, false), ids) << name << " line " << count << ": " << text;
    ASSERT_EQ(tokenizer.Decode(ids, false), golden["decoded"].get<std::string>())
        << name << " line " << count;
    StreamDecoder stream(tokenizer);
    std::string streamed;
    for (const int32_t id : ids) streamed += stream.Push(id);
    ASSERT_EQ(streamed + stream.Finish(), tokenizer.Decode(ids, true)) << name << " line " << count;
  }
  EXPECT_EQ(count, 250);
}

// A folder with some of the files of another, so that Open takes the format.
fs::path Only(const fs::path& folder, const std::vector<std::string>& files) {
  const fs::path result = ScratchFolder();
  for (const std::string& file : files) fs::copy_file(folder / file, result / file);
  return result;
}

struct Case {
  const char* golden;
  const char* folder;  // of ../shared
  std::vector<std::string> files;
};

class GoldenTest : public ::testing::TestWithParam<Case> {};

TEST_P(GoldenTest, IdsAndText) {
  FLATQUANT_NEEDS_SHARED(GetParam().folder);
  const auto tokenizer = Tokenizer::Open(Only(SharedPath(GetParam().folder), GetParam().files));
  CheckGolden(*tokenizer, GetParam().golden);
}

INSTANTIATE_TEST_SUITE_P(
    Formats, GoldenTest,
    ::testing::Values(
        Case{"llama-2", "tokenizers/llama-2", {"tokenizer.json", "tokenizer_config.json"}},
        Case{"llama-2", "tokenizers/llama-2", {"tokenizer.model", "tokenizer_config.json"}},
        Case{"llama-3", "tokenizers/llama-3", {"tokenizer.model"}},
        Case{
            "qwen2.5", "tokenizers/qwen2.5", {"vocab.json", "merges.txt", "tokenizer_config.json"}},
        Case{"smollm2", "tokenizers/smollm2", {"tokenizer.json", "config.json"}},
        Case{"wikillama", "models/wikillama-43m", {"tokenizer.json", "tokenizer_config.json"}}),
    [](const ::testing::TestParamInfo<Case>& info) {
      std::string name = info.param.golden;
      std::erase_if(name, [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); });
      return name + (info.param.files[0] == "tokenizer.json" ? "Json" : "Files");
    });

TEST(GoldenDemoTest, Json) {
  FLATQUANT_NEEDS_SHARED("golden/tokenizers/demo.jsonl");
  CheckGolden(*Tokenizer::Open(SourcePath("models/demo-7m")), "demo");
}

TEST(GoldenDemoTest, SentencePieceModel) {
  FLATQUANT_NEEDS_SHARED("golden/tokenizers/demo.jsonl");
  const fs::path folder =
      Only(SourcePath("models/demo-7m"), {"tokenizer.model", "tokenizer_config.json"});
  CheckGolden(*Tokenizer::Open(folder), "demo");
}

// The WikiText-2 string of the field: a line that is blank after stripping is
// empty, another keeps its newline; joined by blank lines.
std::string WikiText2(const fs::path& file) {
  std::istringstream lines(ReadFile(file));
  std::string text;
  std::string line;
  for (bool first = true; std::getline(lines, line); first = false) {
    if (!first) text += "\n\n";
    if (line.find_first_not_of(" \t\r") != std::string::npos) text += line + "\n";
  }
  return text;
}

// One member of an .npz (zip of .npy): little-endian integers.
std::vector<int32_t> ReadNpz(const fs::path& file, const std::string& member) {
  const std::string zip = ReadFile(file);
  const auto number = [&](size_t at, int bytes) {
    uint64_t value = 0;
    std::memcpy(&value, zip.data() + at, bytes);
    return value;
  };
  // The central directory's entries have the sizes; local headers may not.
  for (size_t at = zip.find("PK\1\2"); at != std::string::npos; at = zip.find("PK\1\2", at + 4)) {
    if (zip.substr(at + 46, number(at + 28, 2)) != member + ".npy") continue;
    const size_t packed = number(at + 20, 4);
    const size_t local = number(at + 42, 4);
    const size_t data = local + 30 + number(local + 26, 2) + number(local + 28, 2);
    std::string npy(number(at + 24, 4), '\0');
    if (number(at + 10, 2) == 0) {
      npy.assign(zip, data, packed);
    } else {
      z_stream stream{};
      inflateInit2(&stream, -MAX_WBITS);
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zip.data() + data));
      stream.avail_in = packed;
      stream.next_out = reinterpret_cast<Bytef*>(npy.data());
      stream.avail_out = npy.size();
      inflate(&stream, Z_FINISH);
      inflateEnd(&stream);
    }
    const size_t header =
        10 + static_cast<unsigned char>(npy[8]) + 256 * static_cast<unsigned char>(npy[9]);
    const size_t width = npy[npy.find("'<") + 3] - '0';  // 'descr': '<u2'
    std::vector<int32_t> ids;
    for (size_t i = header; i + width <= npy.size(); i += width) {
      int32_t id = 0;
      std::memcpy(&id, npy.data() + i, std::min(width, sizeof(id)));
      ids.push_back(id);
    }
    return ids;
  }
  ADD_FAILURE() << "no " << member << " in " << file;
  return {};
}

TEST(GoldenWikiTextTest, WikillamaIds) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/eval_ids.npz");
  FLATQUANT_NEEDS_SHARED("data/wiki.test.raw");
  const auto tokenizer = Tokenizer::Open(SharedPath("models/wikillama-43m"));
  const std::string text = WikiText2(SharedPath("data/wiki.test.raw"));
  const auto start = std::chrono::steady_clock::now();
  const std::vector<int32_t> ids = tokenizer->Encode(text, true);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%.2f MB in %.3f s: %.1f MB/s on one core\n", text.size() / 1e6, took.count(),
              text.size() / 1e6 / took.count());
  const auto expected = ReadNpz(SharedPath("golden/wikillama-43m/eval_ids.npz"), "wikitext2_test");
  ASSERT_EQ(expected.size(), 312482u);
  ASSERT_EQ(ids.size(), expected.size());
  EXPECT_TRUE(ids == expected);
}

}  // namespace
}  // namespace flatquant
