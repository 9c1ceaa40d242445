// The other formats: rank files, vocab.json + merges.txt, SentencePiece.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "flatquant/base/rng.h"
#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/test_folder.h"

namespace flatquant::tokenizer {
namespace {
using flatquant::testing::SourcePath;
using testing::Files;
using testing::Ids;
using testing::Open;
using testing::OpenError;

std::string Base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t bits = 0;
    for (size_t i = 0; i < 3; ++i) {
      bits = bits << 8 | (at + i < bytes.size() ? static_cast<unsigned char>(bytes[at + i]) : 0);
    }
    for (size_t i = 0; i < 4; ++i) {
      out += at + i > bytes.size() ? '=' : kDigits[bits >> (18 - 6 * i) & 63];
    }
  }
  return out;
}

// All bytes, then these tokens.
std::string Ranks(const std::vector<std::string>& tokens) {
  std::string file;
  int rank = 0;
  for (int byte = 0; byte < 256; ++byte) {
    file += Base64(std::string(1, static_cast<char>(byte))) + " " + std::to_string(rank++) + "\n";
  }
  for (const std::string& token : tokens) {
    file += Base64(token) + " " + std::to_string(rank++) + "\n";
  }
  return file;
}

TEST(RanksTest, EncodesAndAddsTheSpecialTokensOfLlama3) {
  const auto tokenizer = Open({{"tokenizer.model", Ranks({"ab", "bc", "abcd", " ab"})}});
  EXPECT_EQ(tokenizer->vocab_size(), 256 + 4 + 256);
  EXPECT_EQ(tokenizer->bos(), 260);
  EXPECT_EQ(tokenizer->eos(), 261);
  EXPECT_EQ(tokenizer->Encode("abc", false), (Ids{256, 'c'}));
  EXPECT_EQ(tokenizer->Encode("abcd", false), Ids{258});  // whole, though no rule gives it
  EXPECT_EQ(tokenizer->Encode("xabcd", false), (Ids{'x', 256, 'c', 'd'}));
  EXPECT_EQ(tokenizer->Encode("b ab", true), (Ids{260, 'b', 259}));
  // Text is mere text unless special tokens are asked for.
  EXPECT_EQ(tokenizer->Encode("<|eot_id|>", true), (Ids{260, 269}));
  EXPECT_EQ(tokenizer->Encode("<|eot_id|>", false).size(), 10u);
  EXPECT_EQ(tokenizer->Decode(Ids{260, 258, 269}, false), "<|begin_of_text|>abcd<|eot_id|>");
  EXPECT_EQ(tokenizer->Decode(Ids{260, 258, 269}, true), "abcd");
  EXPECT_EQ(tokenizer->Decode(Ids{260 + 255}, false), "<|reserved_special_token_250|>");
  EXPECT_EQ(tokenizer->Decode(Ids{0xe6, 0x97, 0xa5, 0xff}, false), "\u65e5\uFFFD");
}

TEST(RanksTest, ConfigNamesWin) {
  const auto tokenizer =
      Open({{"tokenizer.model", Ranks({})},
            {"tokenizer_config.json",
             R"({"add_bos_token": false, "eos_token": "<|eot_id|>", "added_tokens_decoder":
            {"264": {"content": "<|eom_id|>", "special": true}}})"}});
  EXPECT_EQ(tokenizer->Decode(Ids{264}, false), "<|eom_id|>");
  EXPECT_EQ(tokenizer->eos(), 265);
  EXPECT_EQ(tokenizer->Encode("a", true), Ids{'a'});
}

TEST(RanksTest, BadFilesAreNamed) {
  const auto error = [](const std::string& file) { return OpenError({{"tokenizer.model", file}}); };
  const std::string good = Ranks({});
  EXPECT_EQ(error(good), "none");
  EXPECT_EQ(error("IQ== 0\n"), "tokenizer.bad_ranks");  // bytes are missing
  EXPECT_EQ(error(good + "YWI= x\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "YWI=\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "YW= 300\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "Y=WI 300\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + " 300\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "YWI= -1\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "YWI= 99999999999\n"), "tokenizer.bad_ranks");
  EXPECT_EQ(error(good + "YWI= 4194303\n"), "tokenizer.bad_vocab");  // no room for special tokens
  EXPECT_EQ(error(good + "YQ== 300\n"), "tokenizer.bad_ranks");      // "a" again
  EXPECT_EQ(error(good + "YWI= 7\n"), "tokenizer.bad_vocab");        // another byte's rank
  EXPECT_EQ(error(good + Base64(std::string(257, 'a')) + " 300\n"), "tokenizer.bad_ranks");
}

// The printable spelling of all bytes as a vocab.json, then these tokens.
std::string Vocab(const std::vector<std::string>& tokens) {
  nlohmann::json vocab;
  for (int byte = 0; byte < 256; ++byte) {
    vocab[BytesToPrintable(std::string(1, static_cast<char>(byte)))] = byte;
  }
  for (const std::string& token : tokens) vocab[token] = vocab.size();
  return vocab.dump();
}

TEST(VocabAndMergesTest, Gpt2AndQwen) {
  Files files = {{"vocab.json", Vocab({"11", "Ġa", "#a"})},
                 {"merges.txt", "#version: 0.2\r\n1 1\nĠ a\n# a\n"},
                 {"tokenizer_config.json",
                  R"({"add_bos_token": true, "bos_token": "</s>", "added_tokens_decoder":
                      {"300": {"content": "</s>", "special": true}}})"}};
  const auto gpt2 = Open(files);
  EXPECT_EQ(gpt2->Encode("11 a#a", true), (Ids{300, 256, 257, '#', 'a'}));
  EXPECT_EQ(gpt2->Encode("a\u0301", false), (Ids{'a', 0xcc, 0x81}));
  EXPECT_EQ(gpt2->Decode(Ids{256, 257}, false), "11 a");

  files["tokenizer_config.json"] = R"({"tokenizer_class": "Qwen2Tokenizer"})";
  const auto qwen = Open(files);
  EXPECT_EQ(qwen->Encode("11 a#a", true), (Ids{'1', '1', 257, 258}));
  EXPECT_EQ(qwen->Encode("a\u0301", false), (Ids{0xc3, 0xa1}));  // NFC
  EXPECT_EQ(qwen->vocab_size(), 259);
}

TEST(VocabAndMergesTest, BadFilesAreNamed) {
  const auto error = [](const std::string& vocab, const std::string& merges) {
    return OpenError({{"vocab.json", vocab}, {"merges.txt", merges}});
  };
  EXPECT_EQ(error(Vocab({}), ""), "none");
  EXPECT_EQ(error("[]", ""), "tokenizer.bad_json");
  EXPECT_EQ(error(R"({"a": "b"})", ""), "tokenizer.bad_json");
  EXPECT_EQ(error(Vocab({}), "a b"), "tokenizer.bad_merge");
  EXPECT_EQ(error(Vocab({}), "a\n"), "tokenizer.bad_merge");
  EXPECT_EQ(error(Vocab({}), "a  b\n"), "tokenizer.bad_merge");
  EXPECT_EQ(OpenError({{"vocab.json", Vocab({})}}), "tokenizer.missing");
  EXPECT_EQ(OpenError({{"vocab.json", Vocab({})},
                       {"merges.txt", ""},
                       {"tokenizer_config.json", R"({"added_tokens_decoder": {"x": {}}})"}}),
            "tokenizer.bad_json");
}

std::string DemoModel() { return ReadFile(SourcePath("models/demo-7m/tokenizer.model")); }

TEST(SentencePieceTest, SpecialTokens) {
  const auto plain = Open({{"tokenizer.model", DemoModel()}});
  EXPECT_EQ(plain->vocab_size(), 4096);
  EXPECT_EQ(plain->bos(), 1);
  EXPECT_EQ(plain->eos(), 2);
  EXPECT_EQ(plain->Encode("", true), Ids{1});
  EXPECT_EQ(plain->Encode("", false), Ids{});
  const Ids hello = plain->Encode("hello", false);
  Ids wrapped = hello;
  wrapped.insert(wrapped.begin(), 1);
  EXPECT_EQ(plain->Encode("hello", true), wrapped);
  EXPECT_EQ(plain->Encode("<s>hello", false), wrapped);
  EXPECT_EQ(plain->Decode(wrapped, true), "hello");
  EXPECT_EQ(plain->Decode(wrapped, false), "<s> hello");

  const auto configured =
      Open({{"tokenizer.model", DemoModel()},
            {"tokenizer_config.json", R"({"add_bos_token": false, "add_eos_token": true,
              "added_tokens_decoder": {"4096": {"content": "<|user|>", "special": true}}})"}});
  wrapped = hello;
  wrapped.push_back(2);
  EXPECT_EQ(configured->Encode("hello", true), wrapped);
  EXPECT_EQ(configured->Encode("<|user|>", false), Ids{4096});
  EXPECT_EQ(configured->vocab_size(), 4097);
}

// Both files of demo-7m describe one tokenizer; the text is long enough for the
// SentencePiece one to be encoded in parts.
TEST(SentencePieceTest, AgreesWithTokenizerJsonOnLongText) {
  std::string text;
  std::istringstream lines(ReadFile(SourcePath("models/demo-7m/selfgen-eval.jsonl")));
  for (std::string line; std::getline(lines, line) && text.size() < 300'000;) {
    text += nlohmann::json::parse(line)["text"].get<std::string>() + "\n";
  }
  ASSERT_GT(text.size(), 200'000u);
  const auto json = Tokenizer::Open(SourcePath("models/demo-7m"));
  const auto model = Open({{"tokenizer.model", DemoModel()}});
  const Ids ids = model->Encode(text, false);
  EXPECT_TRUE(ids == json->Encode(text, false));
  EXPECT_TRUE(model->Decode(ids, true) == text);
}

// A protocol buffer field of wire type 2.
std::string Field(int number, const std::string& bytes) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  for (size_t size = bytes.size(); true; size >>= 7) {
    out.push_back(static_cast<char>((size & 127) | (size > 127 ? 128 : 0)));
    if (size <= 127) break;
  }
  return out + bytes;
}

// The demo model with this normalization table (precompiled_charsmap).
std::string WithCharsMap(const std::vector<uint32_t>& units, const std::string& strings) {
  const auto size = static_cast<uint32_t>(units.size() * 4);
  std::string map(reinterpret_cast<const char*>(&size), 4);
  map.append(reinterpret_cast<const char*>(units.data()), size);
  return DemoModel() + Field(3, Field(2, map + strings));
}

TEST(SentencePieceTest, BadFilesAreNamed) {
  const auto error = [](const std::string& file) { return OpenError({{"tokenizer.model", file}}); };
  EXPECT_EQ(error(""), "tokenizer.bad_model");
  EXPECT_EQ(error("garbage"), "tokenizer.bad_model");
  EXPECT_EQ(error(DemoModel().substr(0, 20'000)), "tokenizer.bad_model");
  EXPECT_EQ(error(DemoModel() + "\x1a"), "tokenizer.bad_model");
  EXPECT_EQ(error(DemoModel() + "\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
            "tokenizer.bad_model");

  const std::string end(1, '\0');
  EXPECT_EQ(error(WithCharsMap(std::vector<uint32_t>(256), end)), "none");
  EXPECT_EQ(error(WithCharsMap(std::vector<uint32_t>(255), end)), "tokenizer.bad_model");
  EXPECT_EQ(error(WithCharsMap(std::vector<uint32_t>(256), "")), "tokenizer.bad_model");
  EXPECT_EQ(error(WithCharsMap(std::vector<uint32_t>(256), "x")), "tokenizer.bad_model");
  std::vector<uint32_t> units(256);
  units[0] = 1u << 10 | 1u << 9 | 5;  // children 256 units further, past the end
  EXPECT_EQ(error(WithCharsMap(units, end)), "tokenizer.bad_model");
  units[0] = 1u << 31 | 1;  // a value past the strings
  EXPECT_EQ(error(WithCharsMap(units, end)), "tokenizer.bad_model");
}

TEST(SentencePieceTest, DamagedFilesNeverCrash) {
  const std::string original = DemoModel();
  Rng rng(1);
  int refused = 0;
  for (int round = 0; round < 100; ++round) {
    std::string file = original;
    for (int i = 0; i < 3; ++i) {
      const size_t at = rng.Below(round % 2 == 0 ? 200 : file.size());
      file[at] = static_cast<char>(rng.Next());
    }
    try {
      const auto tokenizer = Open({{"tokenizer.model", file}});
      tokenizer->Decode(tokenizer->Encode("hello \u65e5 \xff", true), true);
    } catch (const Error& error) {
      EXPECT_TRUE(error.name().starts_with("tokenizer.")) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 10);
}

}  // namespace
}  // namespace flatquant::tokenizer
