#include "flatquant/tokenizer/bpe_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"

namespace flatquant::tokenizer {
namespace {

using Ids = std::vector<int32_t>;

// The definition, word for word: while a rule applies, apply the one of lowest
// rank at its leftmost place.
Ids MergeSlowly(Ids ids, const std::vector<Merge>& merges) {
  std::map<std::pair<int32_t, int32_t>, Merge> rules;
  for (const Merge& merge : merges) rules[{merge.left, merge.right}] = merge;
  for (;;) {
    size_t best = ids.size();
    uint32_t rank = UINT32_MAX;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto rule = rules.find({ids[i], ids[i + 1]});
      if (rule != rules.end() && rule->second.rank < rank) {
        best = i;
        rank = rule->second.rank;
      }
    }
    if (best == ids.size()) return ids;
    ids[best] = rules.at({ids[best], ids[best + 1]}).merged;
    ids.erase(ids.begin() + best + 1);
  }
}

// A random vocabulary over a few letters: tokens are letters or joints of two
// earlier tokens, ranked in any order.
BpeSpec RandomSpec(Rng* rng, const std::vector<std::string>& letters, int joints) {
  BpeSpec spec;
  spec.where = "test";
  std::vector<std::string> tokens = letters;
  for (int i = 0; i < joints; ++i) {
    const std::string& left = tokens[rng->Below(tokens.size())];
    tokens.push_back(left + tokens[rng->Below(tokens.size())]);
  }
  for (const std::string& token : tokens) {
    spec.vocab.emplace(token, static_cast<int32_t>(spec.vocab.size()));
  }
  for (const auto& [left, left_id] : spec.vocab) {
    for (const auto& [right, right_id] : spec.vocab) {
      const auto merged = spec.vocab.find(left + right);
      if (merged == spec.vocab.end()) continue;
      spec.merges.push_back({left_id, right_id,
                             static_cast<uint32_t>(rng->Below(1000)) * 1000 +
                                 static_cast<uint32_t>(spec.merges.size()),
                             merged->second});
    }
  }
  return spec;
}

TEST(MergeTableTest, AgreesWithTheDefinition) {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Rng rng(seed);
    const BpeSpec spec = RandomSpec(&rng, {"a", "b", "c"}, 12);
    const MergeTable table(spec.merges);
    for (const size_t length : {0, 1, 2, 10, 47, 48, 49, 50, 300}) {
      Ids ids;
      for (size_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(rng.Below(3)));
      const Ids expected = MergeSlowly(ids, spec.merges);
      table.Apply(&ids);
      ASSERT_EQ(ids, expected) << "seed " << seed << " length " << length;
    }
  }
}

TEST(MergeTableTest, LaterRuleForAPairCounts) {
  const std::vector<Merge> merges = {{0, 1, 0, 2}, {0, 1, 1, 3}};
  Ids ids = {0, 1};
  MergeTable(merges).Apply(&ids);
  EXPECT_EQ(ids, Ids{3});
}

// Sessions cut text where no token spans two characters and remember words;
// neither may show.
TEST(BpeModelTest, CuttingAndRememberingDoNotShow) {
  const std::vector<std::string> letters = {"\u2581", "a", "b", "c", "\u00e9", "\u65e5"};
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    BpeSpec spec = RandomSpec(&rng, letters, 10);
    const auto merges = spec.merges;
    const TokenMap vocab = spec.vocab;
    const BpeModel model(std::move(spec));
    BpeModel::Session session(model);
    for (int round = 0; round < 400; ++round) {
      std::string text;
      Ids ids;
      for (size_t n = rng.Below(40); n > 0; --n) {
        const std::string& letter = letters[rng.Below(letters.size())];
        text += letter;
        ids.push_back(vocab.at(letter));
      }
      Ids got;
      session.Encode(text, &got);
      ASSERT_EQ(got, MergeSlowly(ids, merges)) << "seed " << seed << " text " << text;
    }
  }
}

BpeSpec LetterSpec() {
  BpeSpec spec;
  spec.where = "test";
  spec.vocab = {{"<unk>", 0}, {"a", 1}, {"b", 2}, {"ab", 3}};
  spec.merges = {{1, 2, 0, 3}};
  spec.unk = 0;
  return spec;
}

Ids Encode(const BpeModel& model, std::string_view text) {
  Ids ids;
  BpeModel::Session(model).Encode(text, &ids);
  return ids;
}

TEST(BpeModelTest, UnknownCharacters) {
  BpeSpec spec = LetterSpec();
  EXPECT_EQ(Encode(BpeModel(spec), "abxya"), (Ids{3, 0, 0, 1}));
  spec.fuse_unk = true;
  EXPECT_EQ(Encode(BpeModel(spec), "abxya"), (Ids{3, 0, 1}));
  EXPECT_EQ(Encode(BpeModel(spec), "xy"), Ids{0});
  spec.unk.reset();
  EXPECT_EQ(Encode(BpeModel(spec), "xabx"), Ids{3});
}

TEST(BpeModelTest, ByteFallback) {
  BpeSpec spec = LetterSpec();
  spec.byte_fallback = true;
  spec.vocab.emplace("<0xC3>", 4);
  spec.vocab.emplace("<0xA9>", 5);
  const BpeModel model(spec);
  EXPECT_EQ(Encode(model, "a\u00e9b"), (Ids{1, 4, 5, 2}));
  EXPECT_EQ(Encode(model, "a\u00e8b"), (Ids{1, 0, 2}));  // <0xA8> is missing
}

TEST(BpeModelTest, IgnoreMergesTakesWholeTokens) {
  BpeSpec spec = LetterSpec();
  spec.vocab.emplace("ba", 4);
  EXPECT_EQ(Encode(BpeModel(spec), "ba"), (Ids{2, 1}));
  spec.ignore_merges = true;
  EXPECT_EQ(Encode(BpeModel(spec), "ba"), Ids{4});
  EXPECT_EQ(Encode(BpeModel(spec), "bab"), (Ids{2, 3}));
  spec.byte_level = true;
  EXPECT_EQ(Encode(BpeModel(spec), "ba"), Ids{4});
}

TEST(BpeModelTest, BadIdsAreNamed) {
  const auto name = [](BpeSpec spec) -> std::string {
    try {
      const BpeModel model(std::move(spec));
    } catch (const Error& error) {
      return error.name();
    }
    return "none";
  };
  BpeSpec twice = LetterSpec();
  twice.vocab.emplace("c", 3);
  EXPECT_EQ(name(twice), "tokenizer.bad_vocab");
  BpeSpec negative = LetterSpec();
  negative.vocab.emplace("c", -1);
  EXPECT_EQ(name(negative), "tokenizer.bad_vocab");
  BpeSpec huge = LetterSpec();
  huge.vocab.emplace("c", INT32_MAX);
  EXPECT_EQ(name(huge), "tokenizer.bad_vocab");
}

TEST(BpeModelTest, LongPiecesAreNotQuadratic) {
  // 1 MB without a cut: quadratic merging would need 10^12 steps.
  const std::string text(1'000'000, 'a');
  BpeSpec spec;
  spec.where = "test";
  std::string token = "a";
  spec.vocab.emplace(token, 0);
  for (int i = 1; i < 10; ++i) {
    spec.merges.push_back({i - 1, i - 1, static_cast<uint32_t>(i), i});
    token += token;
    spec.vocab.emplace(token, i);
  }
  for (const bool byte_level : {false, true}) {
    spec.byte_level = byte_level;
    const Ids ids = Encode(BpeModel(spec), text);
    ASSERT_EQ(ids.size(), 1953u + 1);  // 1,000,000 = 1953 * 512 + 64
    EXPECT_EQ(std::count(ids.begin(), ids.end(), 9), 1953);
  }
}

}  // namespace
}  // namespace flatquant::tokenizer
