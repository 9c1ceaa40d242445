#include "flatquant/eval/kl_base_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/eval/kl_divergence.h"
#include "flatquant/eval/perplexity.h"
#include "flatquant/eval/small_engine_for_test.h"
#include "flatquant/model/fingerprint.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::RandomText;
using testing::ScratchFolder;
using testing::SmallEngine;

TEST(KlBaseFile, StandsForTheModel) {
  const auto engine = SmallEngine(1);
  const auto other = SmallEngine(2);
  TextWindows text = RandomText(40, 2, 5);
  text.windows = StridedWindows(80, 40, 13);
  const auto path = ScratchFolder() / "base";
  EngineLogitRows rows(*engine, text);
  EXPECT_EQ(WriteKlBase(path, text, rows, engine->pool()).size(), 79u);

  KlBaseFile file(path);
  EXPECT_EQ(file.vocab(), 50);
  EXPECT_EQ(file.text().name, text.name);
  EXPECT_EQ(file.text().ids, text.ids);
  EXPECT_EQ(file.text().Fingerprint(), text.Fingerprint());

  // Rows keep log p within 2.5e-4, so a model is as good as its own file.
  const auto self = Summarize("self", Diverge(text, file, rows, engine->pool()));
  EXPECT_LT(self.kld.mean.mean, 1e-6);
  EXPECT_EQ(self.same_top.mean, 1);
  EngineLogitRows other_rows(*other, text);
  const auto through_file = Diverge(text, file, other_rows, engine->pool());
  const auto direct = Diverge(text, rows, other_rows, engine->pool());
  for (size_t i = 0; i < direct.size(); ++i) {
    EXPECT_NEAR(through_file[i].kld, direct[i].kld, 2.5e-4 * (1 + direct[i].kld));
    EXPECT_NEAR(through_file[i].base_nll, direct[i].base_nll, 5e-4);
    EXPECT_EQ(through_file[i].same_top, direct[i].same_top);
  }
}

TEST(KlBaseFile, AnotherVocabularyIsRefused) {
  class OneWord : public LogitRows {
   public:
    int64_t vocab() const override { return 1; }
    void Begin(size_t) override {}
    std::span<const float> Next(size_t) override { return {}; }
  };
  const auto engine = SmallEngine(1);
  const TextWindows text = RandomText(8, 1, 5);
  EngineLogitRows rows(*engine, text);
  OneWord base;
  EXPECT_THROW(Diverge(text, base, rows, engine->pool()), Error);
}

class CraftedKlBase : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto engine = SmallEngine(1);
    const TextWindows text = RandomText(8, 2, 5);
    EngineLogitRows rows(*engine, text);
    WriteKlBase(path_, text, rows, engine->pool());
    good_ = ReadFile(path_);
  }

  // Opens the bytes and reads every window.
  std::string Failure(const std::string& bytes) {
    // A new file: file systems may sync one that is written over.
    std::filesystem::remove(path_);
    std::ofstream(path_, std::ios::binary) << bytes;
    try {
      KlBaseFile file(path_);
      for (size_t i = 0; i < file.text().windows.size(); ++i) {
        file.Begin(i);
        file.Next(static_cast<size_t>(file.text().windows[i].scored));
      }
    } catch (const Error& error) {
      return error.name();
    }
    return "no error";
  }

  // The file with 8 bytes of its header replaced and the header's fingerprint made
  // right again: what is left to catch are the numbers themselves.
  std::string WithNumber(size_t at, uint64_t value) const {
    std::string bytes = good_;
    std::memcpy(bytes.data() + at, &value, sizeof(value));
    constexpr size_t kHead = 48 + 6 + 2 * 24 + 16 * 4;  // header, name, windows, ids
    Fingerprint fingerprint;
    fingerprint.Add(std::as_bytes(std::span(bytes.data(), kHead)));
    const uint64_t sum = fingerprint.value();
    std::memcpy(bytes.data() + kHead, &sum, sizeof(sum));
    return bytes;
  }

  std::filesystem::path path_ = ScratchFolder() / "base";
  std::string good_;
};

TEST_F(CraftedKlBase, TruncatedOrChanged) {
  EXPECT_EQ(Failure(good_), "no error");
  for (size_t length = 1; length < good_.size(); ++length) {
    ASSERT_EQ(Failure(good_.substr(0, length)), "eval.bad_kl_base") << length;
  }
  for (size_t at = 0; at < good_.size(); ++at) {
    std::string bad = good_;
    bad[at] = static_cast<char>(bad[at] ^ 0x40);
    ASSERT_EQ(Failure(bad), "eval.bad_kl_base") << at;
  }
  EXPECT_EQ(Failure(good_ + "x"), "eval.bad_kl_base");
}

TEST_F(CraftedKlBase, ImpossibleNumbers) {
  const uint64_t kHuge[] = {
      0, 1, 1000, uint64_t{1} << 31, uint64_t{1} << 40, uint64_t{1} << 62, ~uint64_t{0}};
  // vocab, ids, windows, seqlen; begin, length and scored of the second window.
  for (size_t at : {16, 24, 32, 40, 54 + 24, 54 + 32, 54 + 40}) {
    for (uint64_t value : kHuge) {
      uint64_t now;
      std::memcpy(&now, good_.data() + at, sizeof(now));
      // A begin elsewhere in the ids, and a longer limit than needed, are possible.
      const bool possible = (at == 54 + 24 && value <= 1) || value == now;
      EXPECT_EQ(Failure(WithNumber(at, value)) == "no error", possible)
          << "byte " << at << " value " << value;
    }
  }
  // An id outside the vocabulary.
  EXPECT_EQ(Failure(WithNumber(54 + 48, 50)), "eval.bad_kl_base");
}

}  // namespace
}  // namespace flatquant
