// 'flatquant compare' as its users run it, on the first blocks of the embedded model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/base/file.h"
#include "tests/support/run_binary.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::Outcome;
using testing::RunProgram;
using testing::ScratchFolder;
using testing::SourcePath;

const std::string kDemo = SourcePath("models/demo-7m").string();
const std::string kText = "jsonl:" + kDemo + "/selfgen-eval.jsonl";

using Arguments = std::vector<std::string>;

// A command with options that make its work short, and `more`.
Arguments WithCalibration(Arguments command, const Arguments& more) {
  const Arguments options = {"--calib",    "jsonl:" + kDemo + "/selfgen-calib.jsonl",
                             "--nsamples", "2",
                             "--seqlen",   "32",
                             "--epochs",   "1",
                             "--batch",    "2",
                             "--blocks",   "2",
                             "-t",         "1"};
  command.insert(command.end(), options.begin(), options.end());
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

Outcome Compare(const fs::path& out, const std::string& methods, const Arguments& more = {}) {
  return RunProgram(WithCalibration({FLATQUANT_BINARY, "compare", kDemo, "-o", out.string(),
                                     "--methods", methods, "--limit", "2"},
                                    more));
}

double PerplexityOf(const json& row) { return row.at("results").at(0).at("value"); }

TEST(Compare, MakesMeasuresAndReusesRows) {
  const fs::path out = ScratchFolder() / "compared";
  const Outcome first =
      Compare(out, "rtn,gptq,flatquant", {"--weights", "rtn,gptq", "--ppl", kText, "--json", "-"});
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_THAT(first.err, HasSubstr("about"));  // how long the rest takes
  const json table = json::parse(first.out);
  std::vector<std::string> names;
  for (const json& row : table["rows"]) {
    names.push_back(row["method"].get<std::string>() + " " + row["weights"].get<std::string>());
    EXPECT_GT(PerplexityOf(row), 1);
    EXPECT_GT(row["bytes"], 0);
    EXPECT_FALSE(row.contains("failure"));
  }
  EXPECT_THAT(names, ::testing::ElementsAre("- -", "rtn rtn", "gptq gptq", "flatquant rtn",
                                            "flatquant gptq"));
  const json& source = table["rows"][0];
  EXPECT_EQ(source["weight_bits"], 16);
  // Two of eight blocks, all alike.
  EXPECT_DOUBLE_EQ(table["rows"][1]["weight_bits"], (2 * 4 + 6 * 16) / 8.0);
  EXPECT_DOUBLE_EQ(table["rows"][1]["int4_share"], 0.25);
  EXPECT_EQ(table["rows"][4]["transforms_from"], "flatquant-rtn");
  EXPECT_LT(table["rows"][1]["bytes"], source["bytes"]);

  // Rows that are there are neither made nor measured again, also in another form.
  const auto made = fs::last_write_time(out / "flatquant-rtn" / "config.json");
  const std::string record = ReadFile(out / "flatquant-gptq.json");
  const Outcome again =
      Compare(out, "rtn,gptq,flatquant", {"--weights", "rtn,gptq", "--ppl", kText});
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_THAT(again.out, AllOf(HasSubstr("| flatquant | gptq"), HasSubstr(" jsonl |"),
                               HasSubstr("+: with the transforms")));
  EXPECT_EQ(fs::last_write_time(out / "flatquant-rtn" / "config.json"), made);
  EXPECT_EQ(ReadFile(out / "flatquant-gptq.json"), record);

  // What shares its transforms is what a run of its own would have made.
  const fs::path direct = ScratchFolder() / "direct";
  const Outcome quantized = RunProgram(WithCalibration(
      {FLATQUANT_BINARY, "quantize", kDemo, "-o", direct.string(), "--weights", "gptq"}, {}));
  ASSERT_EQ(quantized.status, 0) << quantized.err;
  EXPECT_TRUE(ReadFile(direct / "model.safetensors") ==
              ReadFile(out / "flatquant-gptq" / "model.safetensors"));

  // A row that was made with other options is refused by name; plain round to nearest
  // has none that differ.
  const Outcome changed = Compare(out, "flatquant", {"--ppl", kText, "--lr", "0.02"});
  EXPECT_EQ(changed.status, 1);
  EXPECT_THAT(changed.err, AllOf(HasSubstr("[compare.changed]"), HasSubstr("--lr was 0.005"),
                                 Not(HasSubstr("--epochs"))));
  const Outcome csv = Compare(out, "rtn", {"--ppl", kText, "--lr", "0.02", "--format", "csv"});
  ASSERT_EQ(csv.status, 0) << csv.err;
  EXPECT_THAT(csv.out, HasSubstr("method,weights,"));
  EXPECT_THAT(csv.out, HasSubstr("\nrtn,rtn,13,13,13,13,0.25,"));
}

TEST(Compare, OneFailedRowLeavesTheOthers) {
  const fs::path out = ScratchFolder() / "compared";
  fs::create_directories(out);
  std::ofstream(out / "quarot-rtn.job") << "in the way";
  const fs::path table = out / "table.json";
  const Outcome outcome =
      Compare(out, "rtn,quarot,smoothquant", {"--ppl", kText, "--json", table.string()});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.out, HasSubstr("failed: "));
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("[compare.failed]"), HasSubstr("quarot")));
  const json rows = json::parse(ReadFile(table))["rows"];
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_GT(PerplexityOf(rows[1]), 1);
  EXPECT_TRUE(rows[2].contains("failure"));
  EXPECT_TRUE(rows[2]["results"].empty());
  EXPECT_GT(PerplexityOf(rows[3]), 1);
}

TEST(Compare, RefusesBadInputBeforeAnyWork) {
  const fs::path out = ScratchFolder() / "compared";
  const struct {
    Arguments arguments;
    int status;
    const char* error;
  } cases[] = {
      {{"--methods", "rtn"}, 2, "--ppl"},
      {{"--methods", "rtn,nosuch", "--ppl", kText}, 1, "[compare.unknown_method]"},
      {{"--methods", "rtn,,quarot", "--ppl", kText}, 1, "[compare.bad_list]"},
      {{"--methods", "rtn", "--weights", "best", "--ppl", kText}, 2, "--weights"},
      {{"--methods", "rtn", "--ppl", "jsonl:/no/such"}, 1, "[file.open]"},
      {{"--methods", "flatquant", "--ppl", kText}, 1, "[quantize.needs_calibration]"},
      {{"--methods", "rtn", "--ppl", kText, "--seqlen", "1000000"}, 1, "[usage.seqlen]"},
  };
  for (const auto& [arguments, status, error] : cases) {
    Arguments all = {FLATQUANT_BINARY, "compare", kDemo, "-o", out.string()};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Outcome outcome = RunProgram(all);
    EXPECT_EQ(outcome.status, status) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(error));
    EXPECT_EQ(outcome.out, "");
    EXPECT_FALSE(fs::exists(out));
  }
}

}  // namespace
}  // namespace flatquant
