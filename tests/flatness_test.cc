// 'flatquant flatness' and 'flatquant report' on the embedded model: the figures that
// explain why FlatQuant works, made by the real binary.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/base/file.h"
#include "tests/support/browser.h"
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
using testing::ScratchFolder;
using testing::SourcePath;

const std::string kDemo = SourcePath("models/demo-7m").string();
const std::string kCalib = "jsonl:" + kDemo + "/selfgen-calib.jsonl";

Outcome Flatquant(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), FLATQUANT_BINARY);
  return testing::RunProgram(std::move(arguments));
}

bool HasGnuplot() { return std::system("command -v gnuplot > /dev/null 2>&1") == 0; }

// The mean flatness numbers by method over blocks, of one site or ("") of all: of what
// was measured, not of what the program says about it.
std::map<std::string, double> Means(const json& results, const char* kind,
                                    const std::string& site) {
  std::map<std::string, double> means;
  for (const json& method : results.at("methods")) {
    double sum = 0, count = 0;
    for (const json& curves : method.at("sites")) {
      if (!site.empty() && curves.at("site") != site) continue;
      sum += curves.at(kind).at("flatness").get<double>();
      ++count;
    }
    means[method.at("name")] = sum / count;
  }
  return means;
}

double LastError(const json& method) {
  double sum = 0;
  for (const double error : method.at("errors").back()) sum += error;
  return sum;
}

// A short training is enough to see it: 32 steps per block on windows of 256 tokens.
TEST(Flatness, FlatQuantIsTheFlattestOfFour) {
  const fs::path folder = ScratchFolder();
  std::vector<std::string> arguments = {
      "flatness",  kDemo, "--calib",    kCalib,
      "--seqlen",  "256", "--nsamples", "16",
      "--epochs",  "8",   "--seed",     "1",
      "--windows", "2",   "--json",     (folder / "flatness.json").string()};
  if (HasGnuplot()) {
    for (const char* more : {"--svg", "svg", "-o", "page.html"}) {
      arguments.push_back(more[0] == '-' ? std::string(more) : (folder / more).string());
    }
  }
  const Outcome outcome = Flatquant(arguments);
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("quarot"), HasSubstr("all activations"),
                                 HasSubstr("MSE of last block")));

  const json results = json::parse(ReadFile(folder / "flatness.json"));
  for (const std::string site : {"attn_in", "attn_out", "mlp_in", "mlp_out", ""}) {
    const auto activations = Means(results, "activation", site);
    ASSERT_EQ(activations.size(), 4u);
    for (const char* other : {"rtn", "smoothquant", "quarot"}) {
      EXPECT_LT(activations.at("flatquant"), activations.at(other)) << site << " " << other;
    }
  }
  // Of activations and weights together too. This model's weights are flat as they are.
  const auto activations = Means(results, "activation", ""), weights = Means(results, "weight", "");
  for (const char* other : {"rtn", "smoothquant", "quarot"}) {
    EXPECT_LT(activations.at("flatquant") + weights.at("flatquant"),
              activations.at(other) + weights.at(other))
        << other;
  }
  // What that is for: the error behind the last block.
  std::map<std::string, double> errors;
  for (const json& method : results.at("methods")) errors[method.at("name")] = LastError(method);
  for (const char* other : {"rtn", "smoothquant", "quarot"}) {
    EXPECT_LT(errors.at("flatquant"), errors.at(other)) << other;
  }
  if (!HasGnuplot()) GTEST_SKIP() << "the figures need gnuplot";

  const std::string figure = ReadFile(folder / "svg" / "mlp_out-activation.svg");
  for (const char* method : {">rtn ", ">smoothquant ", ">quarot ", ">flatquant "}) {
    EXPECT_THAT(figure, HasSubstr(method));  // each curve, its number beside it
  }
  EXPECT_THAT(ReadFile(folder / "svg" / "errors-3.svg"), HasSubstr("<polygon"));
  EXPECT_THAT(ReadFile(folder / "page.html"),
              AllOf(HasSubstr("<h2>Flatness</h2>"), HasSubstr("<h2>Error landscape</h2>"),
                    Not(HasSubstr("src=")), Not(HasSubstr("href=\"http"))));
}

// A packed model's own figures, into its report.
TEST(Flatness, OfAPackedModelGoIntoItsReport) {
  const fs::path folder = ScratchFolder();
  const std::string packed = (folder / "packed").string();
  const std::string results = (folder / "flatness.json").string();
  const std::string page = (folder / "report.html").string();
  const Outcome quantize = Flatquant({"quantize", kDemo, "-o", packed, "--method", "quarot"});
  ASSERT_EQ(quantize.status, 0) << quantize.err;
  const Outcome flatness = Flatquant({"flatness", kDemo, "--packed", packed, "--methods",
                                      "rtn,quarot", "--calib", kCalib, "--seqlen", "64",
                                      "--nsamples", "2", "--blocks", "0,7", "--json", results});
  ASSERT_EQ(flatness.status, 0) << flatness.err;
  const json measured = json::parse(ReadFile(results));
  ASSERT_EQ(measured.at("methods").size(), 3u);
  const json& quarot = measured.at("methods")[1];
  const json& read_back = measured.at("methods")[2];
  EXPECT_EQ(read_back.at("name"), "packed");  // the name quarot is taken
  ASSERT_EQ(read_back.at("sites").size(), 2u * 4);
  for (size_t i = 0; i < 8; ++i) {
    // The same transforms; its weights are rounded to 4 bits, and so are what its
    // activations come from: v, up and gate.
    EXPECT_NEAR(read_back.at("sites")[i].at("activation").at("flatness").get<double>(),
                quarot.at("sites")[i].at("activation").at("flatness").get<double>(), 0.02);
    EXPECT_NEAR(read_back.at("sites")[i].at("weight").at("flatness").get<double>(),
                quarot.at("sites")[i].at("weight").at("flatness").get<double>(), 0.02);
  }
  // Both are the same codes on the same windows, once through a file.
  EXPECT_NEAR(LastError(read_back), LastError(quarot), 1e-3 * LastError(quarot));
  if (!HasGnuplot()) GTEST_SKIP() << "the report needs gnuplot";

  const Outcome report =
      Flatquant({"report", packed, "-o", page, "--results", results, "-p", "The city", "-n", "4"});
  ASSERT_EQ(report.status, 0) << report.err;
  EXPECT_THAT(ReadFile(page), AllOf(HasSubstr("<h2>Flatness</h2>"), HasSubstr("<h2>Samples</h2>"),
                                    HasSubstr("id='mlp_out-activation-")));
  FLATQUANT_NEEDS_BROWSER();
  const testing::BrowserVisit visit = testing::OpenInBrowser(page);
  ASSERT_TRUE(visit.opened) << visit.log;
  EXPECT_EQ(visit.console, "");
  EXPECT_THAT(visit.dom, HasSubstr("<h2>Error landscape</h2>"));
}

TEST(Flatness, BadInputIsOneLine) {
  const fs::path folder = ScratchFolder();
  std::ofstream(folder / "empty.jsonl") << "";
  std::ofstream(folder / "not.pth") << "no archive";
  std::ofstream(folder / "other.json") << R"({"format": "flatquant-flatness", "version": 9})";
  const std::string calib = "--calib";
  const struct {
    std::vector<std::string> arguments;
    int status;
    std::string text;
  } kBad[] = {
      {{"flatness", kDemo}, 2, "--calib"},
      {{"flatness", kDemo, calib, kCalib, "--methods", "magic"}, 2, "--methods"},
      {{"flatness", "/no/such/model", calib, kCalib}, 1, "[model.no_directory]"},
      {{"flatness", kDemo, calib, "jsonl:" + (folder / "empty.jsonl").string()}, 1, "[data."},
      {{"flatness", kDemo, calib, kCalib, "--seqlen", "5000"}, 1, "[usage.seqlen]"},
      {{"flatness", kDemo, calib, kCalib, "--seqlen", "64", "--nsamples", "2", "--methods", "rtn",
        "--blocks", "8"},
       1,
       "[flatness.bad_block]"},
      {{"flatness", kDemo, calib, kCalib, "--packed", kDemo}, 1, "[packed."},
      {{"flatness", kDemo, calib, kCalib, "--methods", "rtn", "--transforms",
        (folder / "not.pth").string()},
       1,
       "[flatness.unused_transforms]"},
      {{"flatness", kDemo, calib, kCalib, "--seqlen", "64", "--nsamples", "2", "--transforms",
        (folder / "not.pth").string()},
       1,
       "[pth."},
  };
  for (const auto& bad : kBad) {
    const Outcome outcome = Flatquant(bad.arguments);
    EXPECT_EQ(outcome.status, bad.status) << bad.text;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_THAT(outcome.err,
                AllOf(::testing::StartsWith("flatquant: error: "), HasSubstr(bad.text)));
  }
}

}  // namespace
}  // namespace flatquant
