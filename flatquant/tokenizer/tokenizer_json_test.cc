// tokenizer.json from end to end: each feature on a small file, then hostile
// ones.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "flatquant/tokenizer/test_folder.h"

namespace flatquant::tokenizer {
namespace {
using nlohmann::json;
using testing::Files;
using testing::Ids;
using testing::Open;
using testing::OpenError;

// A LLaMA-like tokenizer over the letters a, b and the space.
json LlamaLike() {
  return json::parse(R"json({
    "added_tokens": [
      {"id": 0, "content": "<unk>", "special": true, "normalized": false},
      {"id": 1, "content": "<s>", "special": true, "normalized": false},
      {"id": 2, "content": "</s>", "special": true, "normalized": false}
    ],
    "normalizer": {"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    ]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                 {"Sequence": {"id": "A", "type_id": 0}}],
      "pair": [],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
      {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    ]},
    "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
      "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "<0xC3>": 3, "<0xA9>": 4, "▁": 5, "a": 6, "b": 7,
                "▁a": 8, "ab": 9, "▁ab": 10},
      "merges": ["▁ a", ["a", "b"], "▁a b"]}
  })json");
}

std::unique_ptr<Tokenizer> Make(const json& file, const std::string& config = "{}") {
  return Open({{"tokenizer.json", file.dump()}, {"tokenizer_config.json", config}});
}

std::string MakeError(const json& file) { return OpenError({{"tokenizer.json", file.dump()}}); }

TEST(TokenizerJsonTest, LlamaLike) {
  const auto tokenizer = Make(LlamaLike());
  EXPECT_EQ(tokenizer->vocab_size(), 11);
  EXPECT_EQ(tokenizer->bos(), 1);  // from the template
  EXPECT_EQ(tokenizer->Encode("", false), Ids{});
  EXPECT_EQ(tokenizer->Encode("", true), Ids{1});
  EXPECT_EQ(tokenizer->Encode("ab ab", true), (Ids{1, 10, 10}));  // both merge spellings
  EXPECT_EQ(tokenizer->Encode("é", false), (Ids{5, 3, 4}));
  EXPECT_EQ(tokenizer->Encode("\xff\xfe", false), (Ids{5, 0}));  // U+FFFD twice, fused
  EXPECT_EQ(tokenizer->Encode("a</s>b", false), (Ids{8, 2, 5, 7}));
  EXPECT_EQ(tokenizer->Decode(Ids{1, 8, 7, 3, 4}, true), "abé");
  EXPECT_EQ(tokenizer->Decode(Ids{1, 8}, false), "<s> a");
  EXPECT_EQ(tokenizer->Decode(Ids{3, 6}, true), "\uFFFDa");
  EXPECT_EQ(tokenizer->Decode(Ids{-1, 999, 6}, true), "a");  // ids of no token
  EXPECT_EQ(tokenizer->Decode(Ids{}, true), "");
}

TEST(TokenizerJsonTest, ConfigDecidesWhereTheClassDoes) {
  const auto encode = [](const std::string& config) {
    return Make(LlamaLike(), config)->Encode("a", true);
  };
  EXPECT_EQ(encode(R"({"tokenizer_class": "LlamaTokenizer", "add_bos_token": false,
                       "bos_token": "<s>"})"),
            Ids{8});
  EXPECT_EQ(encode(R"({"tokenizer_class": "LlamaTokenizerFast", "add_eos_token": true,
                       "bos_token": {"content": "<s>"}, "eos_token": "</s>"})"),
            (Ids{1, 8, 2}));
  EXPECT_EQ(encode(R"({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false})"),
            (Ids{1, 8}));
}

TEST(TokenizerJsonTest, SpecialIdsComeFromTheFirstFileThatHasThem) {
  json file = LlamaLike();
  file["post_processor"] = nullptr;
  const std::string text = file.dump();
  const auto plain = Open({{"tokenizer.json", text}});
  EXPECT_EQ(plain->bos(), std::nullopt);
  EXPECT_EQ(plain->eos(), std::nullopt);
  EXPECT_EQ(plain->stop_tokens(), Ids{});

  const auto generation =
      Open({{"tokenizer.json", text},
            {"generation_config.json", R"({"bos_token_id": 1, "eos_token_id": [2, 7, 5000]})"},
            {"config.json", R"({"bos_token_id": 5, "eos_token_id": 6})"}});
  EXPECT_EQ(generation->bos(), 1);
  EXPECT_EQ(generation->eos(), 2);
  EXPECT_EQ(generation->stop_tokens(), (Ids{2, 7, 6}));  // 5000 is no token

  const auto config =
      Open({{"tokenizer.json", text},
            {"tokenizer_config.json", R"({"bos_token": null, "eos_token": "b"})"},
            {"generation_config.json", R"({"bos_token_id": 1, "eos_token_id": 2})"}});
  EXPECT_EQ(config->bos(), std::nullopt);  // an explicit null
  EXPECT_EQ(config->eos(), 7);
  EXPECT_EQ(config->stop_tokens(), (Ids{7, 2}));

  EXPECT_EQ(OpenError({{"tokenizer.json", text}, {"generation_config.json", "[]"}}),
            "tokenizer.bad_json");
  EXPECT_EQ(OpenError({{"tokenizer.json", text}, {"config.json", R"({"eos_token_id": "x"})"}}),
            "tokenizer.bad_json");
}

TEST(TokenizerJsonTest, AddedTokenFlags) {
  json file = LlamaLike();
  file["normalizer"] = nullptr;
  file["added_tokens"] = json::parse(R"([
    {"id": 20, "content": "<l>", "lstrip": true, "normalized": false},
    {"id": 21, "content": "<r>", "rstrip": true, "normalized": false},
    {"id": 22, "content": "<w>", "normalized": false},
    {"id": 23, "content": "<w>x", "normalized": false},
    {"id": 24, "content": "ba", "single_word": true, "normalized": false},
    {"id": 25, "content": "", "normalized": false}
  ])");
  const auto tokenizer = Make(file);
  EXPECT_EQ(tokenizer->vocab_size(), 26);
  EXPECT_EQ(tokenizer->Encode("a \u00a0\n<l>a", false), (Ids{6, 20, 6}));
  EXPECT_EQ(tokenizer->Encode("a<r> \n\u3000a", false), (Ids{6, 21, 6}));
  EXPECT_EQ(tokenizer->Encode("a<r> <l>a", false), (Ids{6, 21, 20, 6}));
  EXPECT_EQ(tokenizer->Encode("<w><w>xa", false), (Ids{22, 23, 6}));  // the longest wins
  EXPECT_EQ(tokenizer->Encode("ba", false), Ids{24});
  EXPECT_EQ(tokenizer->Encode("baa", false), (Ids{7, 6, 6}));
  EXPECT_EQ(tokenizer->Encode("aba", false), (Ids{9, 6}));
  EXPECT_EQ(tokenizer->Encode("ba<w>ba", false), (Ids{24, 22, 24}));
}

TEST(TokenizerJsonTest, NormalizedAddedTokensAreSoughtAfterNormalization) {
  json file = LlamaLike();
  file["normalizer"] = {{"type", "Lowercase"}};
  file["added_tokens"] = json::parse(R"([
    {"id": 20, "content": "<A>", "normalized": true},
    {"id": 21, "content": "<B>", "normalized": false}
  ])");
  const auto tokenizer = Make(file);
  EXPECT_EQ(tokenizer->Encode("<a>a<A>", false), (Ids{20, 6, 20}));
  EXPECT_EQ(tokenizer->Encode("a<B>", false), (Ids{6, 21}));
  EXPECT_EQ(tokenizer->Encode("<b>", false), (Ids{0, 7, 0}));
}

json WithPreTokenizer(const std::string& pre_tokenizer) {
  json file = LlamaLike();
  file["normalizer"] = nullptr;
  file["post_processor"] = nullptr;
  file["pre_tokenizer"] = json::parse(pre_tokenizer);
  return file;
}

TEST(TokenizerJsonTest, Metaspace) {
  const auto encode = [](const std::string& options, std::string_view text) {
    return Make(WithPreTokenizer(R"({"type": "Metaspace", "replacement": "▁")" + options + "}"))
        ->Encode(text, false);
  };
  EXPECT_EQ(encode("", "a a"), (Ids{8, 8}));
  EXPECT_EQ(encode("", " a"), Ids{8});
  EXPECT_EQ(encode(R"(, "add_prefix_space": false)", "a a"), (Ids{6, 8}));
  EXPECT_EQ(encode(R"(, "prepend_scheme": "never")", "a"), Ids{6});
  EXPECT_EQ(encode(R"(, "prepend_scheme": "always")", "a<s>a"), (Ids{8, 1, 8}));
  EXPECT_EQ(encode(R"(, "prepend_scheme": "first")", "a<s>a"), (Ids{8, 1, 6}));
  EXPECT_EQ(encode(R"(, "prepend_scheme": "first")", "<s>a"), (Ids{1, 6}));
}

TEST(TokenizerJsonTest, ByteLevelAnywhereInTheSequence) {
  json file = WithPreTokenizer(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Digits", "individual_digits": true},
    {"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}]})");
  file["decoder"] = {{"type", "ByteLevel"}};
  file["added_tokens"] = json::array();
  file["model"] = json::parse(R"({"type": "BPE", "vocab":
    {"Ġ": 0, "a": 1, "Ã": 2, "©": 3, "Ġa": 4, "1": 5, "Ã©": 6, "11": 7},
    "merges": ["Ġ a", "Ã ©", "1 1"]})");
  const auto tokenizer = Make(file);
  // Every piece of the digit step gets its own space.
  EXPECT_EQ(tokenizer->Encode("a11", false), (Ids{4, 0, 5, 0, 5}));
  EXPECT_EQ(tokenizer->Encode("é", false), (Ids{0, 6}));
  EXPECT_EQ(tokenizer->Decode(Ids{0, 2, 3, 4}, false), " é a");
  EXPECT_EQ(tokenizer->Decode(Ids{2, 4}, false), "\uFFFD a");

  // Before another step, the bytes are respelled in the text itself.
  file["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
    {"type": "Split", "pattern": {"String": "Ã"}, "behavior": "MergedWithNext"}]})");
  EXPECT_EQ(Make(file)->Encode("aé a", false), (Ids{1, 6, 4}));
  file["pre_tokenizer"] = nullptr;
  file["normalizer"] = {{"type", "ByteLevel"}};
  EXPECT_EQ(Make(file)->Encode("aé a", false), (Ids{1, 6, 4}));
}

TEST(TokenizerJsonTest, OtherPreTokenizers) {
  const auto encode = [](const std::string& type, std::string_view text) {
    return Make(WithPreTokenizer(R"({"type": ")" + type + "\"}"))->Encode(text, false);
  };
  EXPECT_EQ(encode("WhitespaceSplit", "a b\u3000ab"), (Ids{6, 7, 9}));
  EXPECT_EQ(encode("Whitespace", "a b"), (Ids{6, 7}));
  EXPECT_EQ(encode("Punctuation", "a"), Ids{6});
  EXPECT_EQ(MakeError(WithPreTokenizer(R"({"type": "UnicodeScripts"})")), "tokenizer.unsupported");
}

TEST(TokenizerJsonTest, Decoders) {
  const auto decode = [](const std::string& decoder) {
    json file = LlamaLike();
    file["decoder"] = json::parse(decoder);
    return Make(file)->Decode(Ids{8, 7, 8}, false);
  };
  EXPECT_EQ(decode("null"), "▁a b ▁a");
  EXPECT_EQ(decode(R"({"type": "Metaspace", "replacement": "▁"})"), "ab a");
  EXPECT_EQ(decode(R"({"type": "Metaspace", "prepend_scheme": "never"})"), " ab a");
  EXPECT_EQ(decode(R"({"type": "BPEDecoder", "suffix": "a"})"), "▁ b▁");
  EXPECT_EQ(decode(R"({"type": "Strip", "content": "a", "start": 0, "stop": 1})"), "▁b▁");
}

TEST(TokenizerJsonTest, HostileFilesAreNamed) {
  const auto with = [](const char* pointer, const json& value) {
    json file = LlamaLike();
    file[json::json_pointer(pointer)] = value;
    return MakeError(file);
  };
  EXPECT_EQ(OpenError({{"tokenizer.json", ""}}), "tokenizer.bad_json");
  EXPECT_EQ(OpenError({{"tokenizer.json", "[1]"}}), "tokenizer.bad_json");
  EXPECT_EQ(OpenError({{"tokenizer.json", "{\"a\": \"\xff\"}"}}), "tokenizer.bad_json");
  EXPECT_EQ(OpenError({{"tokenizer.json", std::string(1'000'000, '[')}}), "tokenizer.bad_json");
  std::string deep = R"({"normalizer": )";
  for (int i = 0; i < 100'000; ++i) deep += R"({"type": "Sequence", "normalizers": [)";
  EXPECT_EQ(OpenError({{"tokenizer.json", deep}}), "tokenizer.bad_json");

  EXPECT_EQ(with("/model/type", "Unigram"), "tokenizer.unsupported");
  EXPECT_EQ(with("/model/vocab", json::array()), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/vocab/a", "6"), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/vocab/a", 1.5), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/vocab/a", -1), "tokenizer.bad_vocab");
  EXPECT_EQ(with("/model/vocab/a", 1LL << 40), "tokenizer.bad_vocab");
  EXPECT_EQ(with("/model/vocab/a", UINT64_MAX), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/vocab/a", 7), "tokenizer.bad_vocab");  // b's id
  EXPECT_EQ(with("/model/merges", json{"a"}), "tokenizer.bad_merge");
  EXPECT_EQ(with("/model/merges", json{"a b c"}), "tokenizer.bad_merge");
  EXPECT_EQ(with("/model/merges", json{"a q"}), "tokenizer.bad_merge");
  EXPECT_EQ(with("/model/merges", json{"b b"}), "tokenizer.bad_merge");  // no token "bb"
  EXPECT_EQ(with("/model/merges", json{json{"a", 7}}), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/merges", json{json{"a", "b", "b"}}), "tokenizer.bad_json");
  EXPECT_EQ(with("/model/end_of_word_suffix", "</w>"), "tokenizer.unsupported");
  EXPECT_EQ(with("/added_tokens/0/id", -5), "tokenizer.bad_json");
  EXPECT_EQ(with("/added_tokens/0/id", 1 << 30), "tokenizer.bad_json");
  EXPECT_EQ(with("/added_tokens/0/id", 9), "tokenizer.bad_vocab");  // the vocabulary says 0
  EXPECT_EQ(with("/added_tokens/0/content", "new"), "tokenizer.bad_vocab");
  EXPECT_EQ(with("/added_tokens/0/content", nullptr), "tokenizer.bad_json");
  EXPECT_EQ(with("/normalizer/type", "Mystery"), "tokenizer.unsupported");
  EXPECT_EQ(with("/normalizer/normalizers/0", nullptr), "tokenizer.bad_json");
  EXPECT_EQ(with("/normalizer/normalizers/1/pattern", json{{"Regex", "("}}), "tokenizer.bad_regex");
  EXPECT_EQ(with("/post_processor/special_tokens", json::object()), "tokenizer.bad_json");
  EXPECT_EQ(with("/post_processor/special_tokens/<s>/ids", json{77}), "tokenizer.bad_json");
  EXPECT_EQ(with("/post_processor/single", json::array()), "tokenizer.unsupported");
  EXPECT_EQ(with("/decoder/decoders/3/content", "ab"), "tokenizer.bad_json");
  EXPECT_EQ(with("/decoder/decoders/3/start", -1), "tokenizer.bad_json");
  EXPECT_EQ(MakeError(json::object()), "tokenizer.bad_json");
  EXPECT_EQ(OpenError({}), "tokenizer.missing");
}

// Every value of the file in turn replaced by values of other types and ranges.
TEST(TokenizerJsonTest, WrongTypesNeverCrash) {
  const json original = LlamaLike();
  const std::vector<json> replacements = {nullptr,
                                          true,
                                          -1,
                                          1,
                                          1e99,
                                          1ULL << 63,
                                          "x",
                                          "",
                                          "▁",
                                          json::array(),
                                          json::object(),
                                          json{json{json{1}}}};
  // Every leaf and everything that holds it.
  std::set<std::string> places;
  const json leaves = original.flatten();
  for (const auto& [pointer, value] : leaves.items()) {
    for (json::json_pointer place(pointer); !place.empty(); place.pop_back()) {
      places.insert(place.to_string());
    }
  }
  int refused = 0;
  int tried = 0;
  for (const std::string& place : places) {
    for (const json& replacement : replacements) {
      json file = original;
      file[json::json_pointer(place)] = replacement;
      ++tried;
      try {
        const auto tokenizer = Make(file);
        tokenizer->Decode(tokenizer->Encode("<s> ab é \xff", true), true);
      } catch (const Error& error) {
        EXPECT_TRUE(error.name().starts_with("tokenizer.")) << error.what();
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, tried / 2);
}

TEST(TokenizerJsonTest, ThreadsMayShareIt) {
  json file = WithPreTokenizer(R"({"type": "Split", "pattern": {"Regex": "\\s+|\\w+"},
                                   "behavior": "Isolated"})");
  const auto tokenizer = Make(file);
  std::string text;
  for (int i = 0; i < 2000; ++i) text += i % 3 == 0 ? "ab " : "ba ab";
  const Ids expected = tokenizer->Encode(text, true);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5; ++i) result = tokenizer->Encode(text, true);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace flatquant::tokenizer
