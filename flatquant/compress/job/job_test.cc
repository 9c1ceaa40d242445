// Jobs inside one process: what is taken over, what is refused, what bad bytes do. How
// real runs are killed and go on is tests/resume_test.cc.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/base/rng.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/compress/job/job_directory.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using compress::JobDirectory;
using compress::JobSettings;
using compress::RandomWindows;
using compress::TinyLlama;
using compress::WriteTinyModel;
using testing::ErrorName;
using Resume = JobOptions::Resume;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

void Write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && (a.bytes() == 0 || std::memcmp(a.data, b.data, a.bytes()) == 0);
}

void ExpectSame(const PackedModel& a, const PackedModel& b) {
  ASSERT_EQ(a.blocks.size(), b.blocks.size());
  for (size_t i = 0; i < a.blocks.size(); ++i) {
    for (const Linear which : kLinears) {
      EXPECT_TRUE(SameBytes(a.blocks[i].linear(which).weight, b.blocks[i].linear(which).weight));
      EXPECT_TRUE(SameBytes(a.blocks[i].linear(which).scale, b.blocks[i].linear(which).scale));
    }
    for (const Site site : kSites) {
      const PackedSite& left = a.blocks[i].site(site);
      const PackedSite& right = b.blocks[i].site(site);
      EXPECT_EQ(left.left.defined(), right.left.defined());
      if (left.left.defined()) {
        EXPECT_TRUE(SameBytes(left.left, right.left));
      }
      ASSERT_EQ(left.clips.size(), right.clips.size());
      EXPECT_EQ(left.clips[0].max, right.clips[0].max);
      EXPECT_EQ(left.act_bits, right.act_bits);
    }
    EXPECT_EQ(a.blocks[i].cache.k_clip.min, b.blocks[i].cache.k_clip.min);
  }
}

class JobTest : public ::testing::Test {
 protected:
  JobTest()
      : source_(WriteTinyModel(TinyLlama(), 1)),
        model_(SourceModel::Open(source_)),
        windows_(RandomWindows(model_.config(), 4, 16, 2)),
        folder_(testing::ScratchFolder() / "job") {
    options_.epochs = 1;
    options_.batch = 2;
    options_.threads = 1;
    options_.job = JobOptions{folder_};
  }

  PackedModel Quantize(QuantizeReport* report = nullptr) const {
    return flatquant::Quantize(model_, options_, windows_, report);
  }

  PackedModel WithoutJob() const {
    QuantizeOptions options = options_;
    options.job.reset();
    return flatquant::Quantize(model_, options, windows_, nullptr);
  }

  fs::path Block(int number) const {
    return folder_ / ("block-0000" + std::to_string(number) + ".safetensors");
  }

  fs::path source_;
  SourceModel model_;
  TokenWindows windows_;
  fs::path folder_;
  QuantizeOptions options_;
};

TEST_F(JobTest, MissingBlocksAreMadeAgain) {
  ExpectSame(Quantize(), WithoutJob());
  const auto layers = static_cast<int>(model_.config().layers);
  ASSERT_GE(layers, 2);
  for (int missing = 0; missing < layers; ++missing) {
    fs::remove(Block(missing));
    QuantizeReport report;
    ExpectSame(Quantize(&report), WithoutJob());
    EXPECT_EQ(report.resumed_blocks, layers - 1);
    EXPECT_EQ(report.blocks.size(), static_cast<size_t>(layers));
    EXPECT_GT(report.blocks[0].loss_after, 0);
  }
  RemoveJob(folder_);
  EXPECT_FALSE(fs::exists(folder_));
}

TEST_F(JobTest, ReportsSurviveTheirFile) {
  QuantizeReport first;
  Quantize(&first);
  QuantizeReport second;
  Quantize(&second);
  ASSERT_EQ(first.blocks.size(), second.blocks.size());
  EXPECT_EQ(second.resumed_blocks, model_.config().layers);
  EXPECT_EQ(first.calibration_seconds, second.calibration_seconds);
  for (size_t i = 0; i < first.blocks.size(); ++i) {
    const BlockReport& a = first.blocks[i];
    const BlockReport& b = second.blocks[i];
    EXPECT_EQ(a.loss_before, b.loss_before);
    EXPECT_EQ(a.loss_after, b.loss_after);
    EXPECT_EQ(a.self_test_error, b.self_test_error);
    for (size_t site = 0; site < a.sites.size(); ++site) {
      ASSERT_TRUE(a.sites[site].flatness && b.sites[site].flatness);
      EXPECT_EQ(a.sites[site].flatness->weight_after, b.sites[site].flatness->weight_after);
      EXPECT_EQ(a.sites[site].weight_clip_mean, b.sites[site].weight_clip_mean);
      EXPECT_EQ(a.sites[site].act_clips.size(), b.sites[site].act_clips.size());
    }
  }
}

TEST_F(JobTest, GoesOnWithItsOwnNumberOfRestarts) {
  const auto refusal = [&](int restarts) {
    options_.restarts = restarts;
    return testing::ErrorMessage([&] { Quantize(); });
  };
  options_.restarts = 2;
  QuantizeReport first, second;
  const PackedModel whole = Quantize(&first);
  EXPECT_THAT(refusal(3), HasSubstr("--restarts was 2, is 3"));
  EXPECT_THAT(refusal(1), HasSubstr("--restarts was 2, is not given"));
  EXPECT_EQ(ErrorName([&] { Quantize(); }), "job.changed");
  options_.restarts = 2;
  fs::remove(Block(1));
  ExpectSame(Quantize(&second), WithoutJob());
  ASSERT_EQ(second.resumed_blocks, 1);
  for (size_t i = 0; i < first.blocks.size(); ++i) {
    EXPECT_EQ(second.blocks[i].start_losses.size(), 2u);
    EXPECT_EQ(second.blocks[i].start_losses, first.blocks[i].start_losses);
    EXPECT_EQ(second.blocks[i].chosen_start, first.blocks[i].chosen_start);
  }
  EXPECT_EQ(second.options.at("--restarts"), "2");
}

TEST_F(JobTest, BlocksThatNeedTheOnesBeforeGoOnFromTheStream) {
  options_.stream = QuantizeOptions::Stream::kQuantized;
  const auto layers = static_cast<int>(model_.config().layers);
  ExpectSame(Quantize(), WithoutJob());
  const fs::path stream = folder_ / "stream-00001.safetensors";
  EXPECT_FALSE(fs::exists(stream)) << "only the last one is kept";
  // The first block alone is finished: its successor's inputs are not there.
  for (int layer = 1; layer < layers; ++layer) fs::remove(Block(layer));
  EXPECT_EQ(ErrorName([&] { Quantize(); }), "job.damaged");
}

TEST_F(JobTest, ActivationsInFilesGiveTheSameBytes) {
  options_.calib_memory = 1;
  const PackedModel in_files = Quantize();
  ExpectSame(in_files, WithoutJob());
  options_.calib_memory = 0;
  ExpectSame(in_files, WithoutJob());
  for (const auto& entry : fs::directory_iterator(folder_)) {
    EXPECT_THAT(entry.path().filename().string(), AnyOf("job.json", StartsWith("block-")));
  }
}

TEST_F(JobTest, NoByteOfABlocksStateCanChangeUnnoticed) {
  Quantize();
  const std::string bytes = ReadFile(Block(0));
  const uint64_t seed = 5;
  Rng rng(seed);
  const auto expect_refusal = [&](const std::string& what) {
    EXPECT_THAT(ErrorName([&] { Quantize(); }),
                AnyOf(StartsWith("job."), StartsWith("safetensors."), StartsWith("packed.")))
        << what;
  };
  for (int i = 0; i < 200; ++i) {
    // Half of them in the header, which is small.
    const size_t range = i % 2 == 0 ? size_t{4096} : bytes.size();
    const size_t at = rng.Below(std::min(range, bytes.size()));
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ (1 << rng.Below(8)));
    // Spaces at the end of the header mean nothing.
    if (bytes[at] == ' ') continue;
    Write(Block(0), changed);
    expect_refusal("byte " + std::to_string(at));
  }
  for (int i = 0; i < 20; ++i) {
    Write(Block(0), bytes.substr(0, rng.Below(bytes.size())));
    expect_refusal("cut");
  }
  Write(Block(0), ReadFile(Block(1)));
  expect_refusal("another block's state");
  Write(Block(0), bytes);
  EXPECT_EQ(ErrorName([&] { Quantize(); }), "");
}

TEST_F(JobTest, BadDescriptionsAreRefused) {
  Quantize();
  const fs::path description = folder_ / "job.json";
  const std::string text = ReadFile(description);
  const struct {
    std::string text;
    const char* name;
  } kBad[] = {
      {"", "job.damaged"},
      {"[1]", "job.damaged"},
      {"{}", "job.damaged"},
      {R"({"format": "flatquant-job", "version": 1})", "job.damaged"},
      {R"({"format": "flatquant-job", "version": 1, "settings": {"--lr": 1}})", "job.damaged"},
      {R"({"format": "flatquant-job", "version": 2, "settings": {}})", "job.newer_version"},
      {R"({"format": "flatquant-job", "version": 1, "settings": {}})", "job.changed"},
  };
  for (const auto& bad : kBad) {
    Write(description, bad.text);
    EXPECT_EQ(ErrorName([&] { Quantize(); }), bad.name) << bad.text;
  }
  Write(description, text);
  EXPECT_EQ(ErrorName([&] { Quantize(); }), "");
  // Without a description the blocks are nobody's, and go.
  fs::remove(description);
  QuantizeReport report;
  Quantize(&report);
  EXPECT_EQ(report.resumed_blocks, 0);
}

TEST(JobDirectoryTest, OneRunAtATime) {
  const JobOptions options{testing::ScratchFolder() / "job"};
  const JobSettings settings = {{"--lr", "1"}};
  {
    const JobDirectory first = JobDirectory::Open(options, TinyLlama(), settings);
    EXPECT_EQ(ErrorName([&] { JobDirectory::Open(options, TinyLlama(), settings); }), "job.in_use");
    EXPECT_EQ(ErrorName([&] { JobDirectory::Join(options, TinyLlama(), settings); }), "");
    EXPECT_EQ(ErrorName([&] {
                JobDirectory::Join(options, TinyLlama(), {{"--lr", "2"}});
              }),
              "job.changed");
  }
  EXPECT_EQ(ErrorName([&] { JobDirectory::Open(options, TinyLlama(), settings); }), "");
}

TEST(JobDirectoryTest, StandsBesideItsOutput) {
  EXPECT_EQ(JobDirectoryFor("a/b"), fs::path("a/b.job"));
  EXPECT_EQ(JobDirectoryFor("a/b/"), fs::path("a/b.job"));
  EXPECT_EQ(JobDirectoryFor("a/../b"), fs::path("b.job"));
}

}  // namespace
}  // namespace flatquant
