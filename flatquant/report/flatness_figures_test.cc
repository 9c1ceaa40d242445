#include "flatquant/report/flatness_figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

json Curve(double flatness) {
  return {{"flatness", flatness},
          {"channels", 3},
          {"rms", 2.0},
          {"ranks", {0, 1, 2}},
          {"magnitudes", {4.0, 2.0, 1.0}}};
}

json Method(const std::string& name, double flatness) {
  json sites = json::array();
  for (const char* site : {"attn_in", "attn_out", "mlp_in", "mlp_out"}) {
    for (const int block : {0, 5}) {
      // Block 5 is the less flat one.
      sites.push_back({{"block", block},
                       {"site", site},
                       {"activation", Curve(flatness + 0.01 * block)},
                       {"weight", Curve(flatness / 2)}});
    }
  }
  return {{"name", name}, {"sites", std::move(sites)}, {"errors", {{0.5, 0.25}, {2.0, 1.0}}}};
}

json Figures() {
  return {{"format", kFlatnessFormat},
          {"version", kFlatnessVersion},
          {"model", "m<odel>"},
          {"scheme", "w4a4kv4"},
          {"windows", 2},
          {"tokens", 64},
          {"positions", {0, 32}},
          {"methods", {Method("rtn", 0.5), Method("<img src=x onerror=alert(1)>", 0.25)}}};
}

bool HasGnuplot() { return std::system("command -v gnuplot > /dev/null 2>&1") == 0; }

TEST(FlatnessFigures, TablesHaveMeansOverBlocks) {
  const auto figures = FlatnessFigures::Parse(Figures(), "f.json");
  const std::vector<std::string> lines = figures.Lines();
  ASSERT_EQ(lines.size(), 13u);
  EXPECT_THAT(lines[2],
              AllOf(HasSubstr("attn_in activation"), HasSubstr(" 0.5250"), HasSubstr(" 0.2750")));
  EXPECT_THAT(lines[11], AllOf(HasSubstr("all weights"), HasSubstr("0.2500"), HasSubstr("0.1250")));
  EXPECT_THAT(lines[12], HasSubstr("1.5"));
  const std::string html = figures.Html(/*plots=*/false);
  EXPECT_THAT(html, AllOf(HasSubstr("<td class=\"number\">0.5250</td>"),
                          HasSubstr("&lt;img src=x onerror=alert(1)&gt;"), Not(HasSubstr("<img")),
                          HasSubstr("2 windows of 64 tokens")));
}

TEST(FlatnessFigures, DrawsCurvesOfTheLeastFlatBlockWithTheirNumbers) {
  if (!HasGnuplot()) GTEST_SKIP() << "needs gnuplot";
  const auto figures = FlatnessFigures::Parse(Figures(), "f.json");
  std::vector<std::string> names;
  for (const auto& [name, svg] : figures.Drawings()) {
    names.push_back(name);
    EXPECT_THAT(svg, AllOf(::testing::StartsWith("<svg"), Not(HasSubstr("<img"))));
    if (name == "mlp_in-activation") {
      EXPECT_THAT(svg, HasSubstr(">rtn 0.550<"));
    }
  }
  EXPECT_EQ(names.size(), 3u * 4 + 1 + 2);
  EXPECT_EQ(names.back(), "errors-1");
  const std::string page = FlatnessPage(figures, Figures().dump());
  EXPECT_THAT(page,
              AllOf(HasSubstr("Activations, block 5."), HasSubstr("id='errors-1-"),
                    HasSubstr("<title>m&lt;odel&gt;: flatness</title>"), Not(HasSubstr("<img"))));
}

// Files come from elsewhere: whatever is in them gives figures or one error.
TEST(FlatnessFigures, RefuseOtherFiles) {
  const auto changed = [](const char* pointer, const json& value) {
    json figures = Figures();
    figures[json::json_pointer(pointer)] = value;
    return figures;
  };
  const json kBad[] = {
      json::object(),
      changed("/format", "x"),
      changed("/version", 2),
      changed("/methods", json::array()),
      changed("/methods/0/name", 3),
      changed("/methods/0/sites", json::array()),
      changed("/methods/1/sites/0/block", 1),
      changed("/methods/0/sites/0/site", "../../etc"),
      changed("/methods/0/sites/0/weight/ranks", {0, 1}),
      changed("/methods/0/sites/0/weight/magnitudes", {1, -1, 2}),
      changed("/methods/0/sites/0/weight/magnitudes", "abc"),
      changed("/methods/0/errors", {{1.0}, {2.0}}),
      changed("/methods/1/errors", {{1.0, 2.0}}),
      changed("/positions", json::array()),
  };
  for (const json& bad : kBad) {
    try {
      FlatnessFigures::Parse(bad, "bad.json");
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.name(), "report.bad_results");
      EXPECT_THAT(error.what(), HasSubstr("bad.json"));
    }
  }
}

}  // namespace
}  // namespace flatquant
