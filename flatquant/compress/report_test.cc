#include "flatquant/compress/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "flatquant/compress/report_json.h"

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<BlockReport> WithRatios(const std::vector<double>& ratios) {
  std::vector<BlockReport> blocks;
  for (const double ratio : ratios) {
    BlockReport block;
    block.block = static_cast<int64_t>(blocks.size());
    block.loss_before = 0.5 * static_cast<double>(blocks.size() + 1);
    block.loss_after = ratio * block.loss_before;
    blocks.push_back(block);
  }
  return blocks;
}

TEST(AbnormalBlocksTest, NamesThoseThatStandOut) {
  EXPECT_THAT(AbnormalBlocks({}), IsEmpty());
  EXPECT_THAT(AbnormalBlocks(WithRatios({0.3, 0.32, 0.29, 0.31, 0.3})), IsEmpty());
  // Spread is normal where all blocks have it; half as good is, where few differ.
  EXPECT_THAT(AbnormalBlocks(WithRatios({0.1, 0.2, 0.4, 0.3, 0.15, 0.5})), IsEmpty());
  EXPECT_THAT(AbnormalBlocks(WithRatios({0.3, 0.32, 0.9, 0.31, 0.3})), ElementsAre(2));
  // Too few to say what is normal.
  EXPECT_THAT(AbnormalBlocks(WithRatios({0.3, 0.3, 0.9})), IsEmpty());
  // Worse than before is always abnormal; blocks without training are not looked at.
  EXPECT_THAT(AbnormalBlocks(WithRatios({1.2})), ElementsAre(0));
  EXPECT_THAT(AbnormalBlocks(std::vector<BlockReport>(8)), IsEmpty());
}

TEST(ReportJsonTest, StartsAreThereWhereThereAreSeveral) {
  BlockReport report;
  const auto json = [&report] { return nlohmann::json::parse(compress::ToJson(report).dump()); };
  EXPECT_FALSE(json().contains("start_losses"));
  EXPECT_FALSE(json().contains("chosen_start"));
  EXPECT_THAT(compress::BlockReportFromJson(json()).start_losses, IsEmpty());
  const double infinity = std::numeric_limits<double>::infinity();
  report.start_losses = {infinity, 0.5, 0.25};
  report.chosen_start = 2;
  EXPECT_TRUE(json()["start_losses"][0].is_null());
  EXPECT_EQ(json()["start_losses"][1], 0.5);
  const BlockReport back = compress::BlockReportFromJson(json());
  EXPECT_THAT(back.start_losses, ElementsAre(infinity, 0.5, 0.25));
  EXPECT_EQ(back.chosen_start, 2);
  QuantizeReport run;
  run.blocks = {report};
  EXPECT_THAT(Warnings(run), ElementsAre(HasSubstr("block 0: 1 of its 3 starts diverged")));
}

TEST(ReportJsonTest, HasTheDocumentedFields) {
  QuantizeReport report;
  report.options = {{"--lr", "0.005"}};
  report.blocks = WithRatios({0.3, 1.5});
  report.blocks[0].sites[0].act_clips = {{0.75f, 0.5f}};
  report.blocks[0].sites[0].flatness = SiteFlatnessReport{1, 0.25, 0.5, 0.125};
  report.peak_memory_bytes = 123;
  const auto json = nlohmann::json::parse(ReportJson(report, {{"method", "flatquant"}}));
  EXPECT_EQ(json["format"], "flatquant-report");
  EXPECT_EQ(json["version"], 1);
  EXPECT_EQ(json["options"]["--lr"], "0.005");
  EXPECT_EQ(json["provenance"]["method"], "flatquant");
  EXPECT_EQ(json["peak_memory_bytes"], 123);
  EXPECT_TRUE(json["timings"].contains("calibration_seconds"));
  ASSERT_EQ(json["blocks"].size(), 2u);
  EXPECT_EQ(json["blocks"][0]["abnormal"], false);
  EXPECT_EQ(json["blocks"][1]["abnormal"], true);
  const auto& site = json["blocks"][0]["sites"][0];
  EXPECT_EQ(site["site"], "attn_in");
  EXPECT_EQ(site["act_clips"][0]["max"], 0.75);
  EXPECT_EQ(site["flatness"]["activation_after"], 0.25);
  EXPECT_FALSE(json["blocks"][0]["sites"][1].contains("flatness"));
  ASSERT_EQ(json["warnings"].size(), 1u);
  EXPECT_THAT(json["warnings"][0].get<std::string>(), HasSubstr("block 1"));
}

}  // namespace
}  // namespace flatquant
