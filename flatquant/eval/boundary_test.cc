#include "flatquant/eval/boundary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flatquant/base/error.h"
#include "flatquant/data/byte_tokenizer.h"

namespace flatquant {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kBos = ByteTokenizer::kBos;

LikelihoodRequest Encode(const Tokenizer& tokenizer, std::string_view context,
                         std::string_view continuation, BosRule bos = BosRule::kTokenizer) {
  return EncodePair(tokenizer, context, continuation, bos, "file:3");
}

// Joins "xy" into one token; has no BOS where told so.
class JoiningTokenizer : public ByteTokenizer {
 public:
  explicit JoiningTokenizer(bool has_bos) : has_bos_(has_bos) {}

  std::vector<int32_t> Encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool joined = text.substr(i, 2) == "xy";
      ids.push_back(joined ? 300 : text[i]);
      i += joined ? 1 : 0;
    }
    return ids;
  }
  std::optional<int32_t> bos() const override {
    return has_bos_ ? std::optional<int32_t>(kBos) : std::nullopt;
  }

 private:
  bool has_bos_;
};

TEST(Boundary, CutsAfterTheContextsTokens) {
  const LikelihoodRequest request = Encode(ByteTokenizer(), "ab", " c");
  EXPECT_THAT(request.context, ElementsAre(kBos, 'a', 'b'));
  EXPECT_THAT(request.continuation, ElementsAre(' ', 'c'));
}

TEST(Boundary, WhiteSpaceAtTheContextsEndMovesOn) {
  const LikelihoodRequest request = Encode(ByteTokenizer(), "ab \n", "c");
  EXPECT_THAT(request.context, ElementsAre(kBos, 'a', 'b'));
  EXPECT_THAT(request.continuation, ElementsAre(' ', '\n', 'c'));
  // White space as Python sees it: U+00A0 too.
  EXPECT_THAT(Encode(ByteTokenizer(), "a\xc2\xa0", "c").continuation,
              ElementsAre(static_cast<int32_t>(0xc2), static_cast<int32_t>(0xa0), 'c'));
}

TEST(Boundary, ATokenAcrossTheBoundaryCountsAsContext) {
  const LikelihoodRequest request = Encode(JoiningTokenizer(true), "ax", "yz");
  EXPECT_THAT(request.context, ElementsAre('a', 'x'));
  EXPECT_THAT(request.continuation, ElementsAre('z'));
}

TEST(Boundary, BosRules) {
  EXPECT_THAT(Encode(ByteTokenizer(), "a", "b", BosRule::kNever).context, ElementsAre('a'));
  EXPECT_THAT(Encode(ByteTokenizer(), "a", "b", BosRule::kAlways).context, ElementsAre(kBos, 'a'));
  const LikelihoodRequest added = Encode(JoiningTokenizer(true), "a", "b", BosRule::kAlways);
  EXPECT_THAT(added.context, ElementsAre(kBos, 'a'));
  EXPECT_THAT(added.continuation, ElementsAre('b'));
}

TEST(Boundary, AnEmptyContextIsBosOrElseEos) {
  const LikelihoodRequest request = Encode(ByteTokenizer(), "", " word", BosRule::kNever);
  EXPECT_THAT(request.context, ElementsAre(kBos));
  EXPECT_EQ(request.continuation.size(), 5u);
  EXPECT_THAT(Encode(JoiningTokenizer(false), " ", "b").context, ElementsAre(ByteTokenizer::kEos));
}

std::string Failure(const Tokenizer& tokenizer, std::string_view context,
                    std::string_view continuation, BosRule bos = BosRule::kTokenizer) {
  try {
    Encode(tokenizer, context, continuation, bos);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Boundary, Failures) {
  EXPECT_THAT(Failure(JoiningTokenizer(true), "ax", "y"),
              AllOf(HasSubstr("file:3"), HasSubstr("[eval.empty_continuation]")));
  EXPECT_THAT(Failure(ByteTokenizer(), "a", ""), HasSubstr("[eval.empty_continuation]"));
  EXPECT_THAT(Failure(JoiningTokenizer(false), "a", "b", BosRule::kAlways),
              HasSubstr("[eval.no_bos]"));
}

}  // namespace
}  // namespace flatquant
