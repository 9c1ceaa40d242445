#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/packed/small_config_for_test.h"
#include "flatquant/report/html.h"
#include "flatquant/report/plot.h"
#include "flatquant/report/report_page.h"
#include "tests/support/browser.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

PackedModel Model() {
  PackedModel model = RandomPackedModel(testing::SmallConfig(64), Scheme::Parse("w4a4kv4"), 1);
  model.provenance = {{"method", "<flat & quant>"}};
  return model;
}

ReportData Data(const PackedModel& model) {
  ReportData data;
  data.title = "demo \"<b>\"";
  data.model = &model;
  data.plots = false;
  return data;
}

// A browser's script console must stay silent, and the page's script must have run.
TEST(ReportPage, OpensInABrowser) {
  FLATQUANT_NEEDS_BROWSER();
  const PackedModel model = Model();
  const auto folder = testing::ScratchFolder();
  std::string page = ReportPage(Data(model));
  // Presses the button, whose link then has an address of its own.
  page +=
      "<script>URL.createObjectURL = blob => { document.title = 'saved ' + blob.size; "
      "return 'data:,'; }; document.getElementById('save').click();</script>";
  std::ofstream(folder / "page.html") << page;
  const testing::BrowserVisit visit = testing::OpenInBrowser(folder / "page.html");
  ASSERT_TRUE(visit.opened) << visit.log;
  EXPECT_EQ(visit.console, "");
  EXPECT_THAT(visit.dom, AllOf(HasSubstr("<h2>Clips</h2>"), HasSubstr("<title>saved ")))
      << visit.log;
}

bool HasGnuplot() { return std::system("command -v gnuplot > /dev/null 2>&1") == 0; }

TEST(Html, Escapes) {
  EXPECT_EQ(EscapeHtml("a<b>&\"'\n\x01"), "a&lt;b&gt;&amp;&quot;&#39;\n\xef\xbf\xbd");
  EXPECT_EQ(EscapeJsonForScript(R"({"a":"</script>"})"), R"({"a":"\u003c/script>"})");
  EXPECT_EQ(nlohmann::json::parse(EscapeJsonForScript(R"({"a":"</script>"})"))["a"], "</script>");
}

TEST(Html, Tables) {
  const HtmlTable table{{"", "n"}, {{"a<", "1"}}};
  EXPECT_THAT(table.Html(), AllOf(HasSubstr("<th></th><th class=\"number\">n</th>"),
                                  HasSubstr("<td>a&lt;</td><td class=\"number\">1</td>")));
}

TEST(ReportPage, IsSelfContainedAndEscaped) {
  const PackedModel model = Model();
  ReportData data = Data(model);
  data.samples = {{"Once <i>", " upon", " a </script> time"}};
  const std::string page = ReportPage(data);
  EXPECT_THAT(page, AllOf(HasSubstr("<h1>demo &quot;&lt;b&gt;&quot;</h1>"),
                          HasSubstr("&lt;flat &amp; quant&gt;"), HasSubstr("Once &lt;i&gt;"),
                          HasSubstr("<h2>Clips</h2>"), Not(HasSubstr("<h2>Recovery</h2>"))));
  // Nothing is fetched.
  for (const char* fetch : {"http://", "https://", "src=", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(fetch))) << fetch;
  }
  // The raw data can be read back, and end where they should.
  const std::string open = "<script id=\"data\" type=\"application/json\">";
  const size_t begin = page.find(open) + open.size();
  const auto raw = nlohmann::json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(raw.at("samples")[0].at("quantized"), " a </script> time");
  EXPECT_EQ(raw.at("provenance").at("method"), "<flat & quant>");
}

const char kEval[] = R"({"results": [{"name": "piqa", "metric": "acc", "value": 0.5,
  "stderr": null, "seconds": 2}], "recovery": [{"name": "w", "metric": "perplexity", "base": 20,
  "value": 25, "difference": 5, "difference_stderr": 0.25, "recovered_percent": 80}],
  "kl": [{"name": "w", "kld": {"value": 0.125, "median": 0.1, "maximum": 2,
  "percentiles": {"99": 1}}, "same_top": {"value": 0.9}, "ratio": {"value": 1.25}}]})";
const char kQuantize[] = R"({"blocks": [{"block": 0, "loss_before": 0.5, "loss_after": 0.25,
  "seconds": 3}, {"block": 1, "loss_before": 0.75, "loss_after": 0.125, "seconds": 3}],
  "calibration_seconds": 6, "total_seconds": 7, "self_test_error": 1e-6})";

TEST(ReportPage, ShowsWhatCommandsWrote) {
  const PackedModel model = Model();
  ReportData data = Data(model);
  data.results = {{"eval.json", nlohmann::json::parse(kEval)},
                  {"quantize.json", nlohmann::json::parse(kQuantize)}};
  EXPECT_THAT(ReportPage(data),
              AllOf(HasSubstr("<td class=\"number\">80.00 %</td>"), HasSubstr("50.00 %"),
                    HasSubstr("0.125000"), HasSubstr("90.00 %"), HasSubstr("<td>1</td>"),
                    HasSubstr("<td class=\"number\">0.75</td>")));
}

// What 'quantize' leaves in the model's folder; its texts are as hostile as any.
const char kRun[] = R"({"format": "flatquant-report", "version": 1,
  "options": {"--method": "<script>alert(1)</script>"}, "self_test_error": 1e-6,
  "timings": {"calibration_seconds": 61, "total_seconds": 75}, "peak_memory_bytes": 2500000,
  "blocks": [{"block": 0, "loss_before": 0.5, "loss_after": 0.25, "seconds": 3, "abnormal": true,
    "sites": [{"site": "<svg onload=alert(1)>", "act_clips": [{"max": 1, "min": 1}],
      "weight_clip_mean": 0.875, "flatness": {"activation_before": 0.75, "activation_after": 0.125,
      "weight_before": 0.5, "weight_after": 0.25}}, {"site": "mlp_in", "act_clips": [],
      "weight_clip_mean": 1}]}],
  "warnings": ["block 0: <b onclick=alert(1)>"]})";

TEST(ReportPage, ShowsTheRunThatMadeTheModel) {
  const PackedModel model = Model();
  ReportData data = Data(model);
  data.plots = HasGnuplot();
  data.results = {{"report.json", nlohmann::json::parse(kRun)}};
  const std::string page = ReportPage(data);
  EXPECT_THAT(page, AllOf(HasSubstr("<td>quantize: calibration</td><td class=\"number\">1:01</td>"),
                          HasSubstr("2.5 MB"), HasSubstr("0.7500"), HasSubstr("0.1250"),
                          HasSubstr("0.875"), HasSubstr("abnormal")));
  EXPECT_THAT(page, AllOf(HasSubstr("&lt;script&gt;alert(1)"), HasSubstr("&lt;svg onload"),
                          HasSubstr("&lt;b onclick"), Not(HasSubstr("<script>alert")),
                          Not(HasSubstr("<svg onload")), Not(HasSubstr("<b onclick"))));
}

// On a phone, tables and wide plots scroll inside the page, not the page itself.
TEST(ReportPage, FitsAPhone) {
  FLATQUANT_NEEDS_BROWSER();
  const PackedModel model = Model();
  ReportData data = Data(model);
  data.plots = HasGnuplot();
  data.samples = {{"Once", " upon", std::string(200, 'x')}};
  data.results = {{"eval.json", nlohmann::json::parse(kEval)},
                  {"report.json", nlohmann::json::parse(kRun)}};
  const auto folder = testing::ScratchFolder();
  std::ofstream(folder / "phone.html")
      << "<!doctype html><iframe id=\"phone\" style=\"width: 375px; height: 800px; border: 0\" "
         "srcdoc=\""
      << EscapeHtml(ReportPage(data))
      << "\"></iframe><script>const phone = document.getElementById('phone');\n"
         "phone.addEventListener('load', () => { const root = "
         "phone.contentDocument.documentElement;\n"
         "document.title = 'beyond ' + (root.scrollWidth - root.clientWidth); });</script>";
  const testing::BrowserVisit visit = testing::OpenInBrowser(folder / "phone.html");
  ASSERT_TRUE(visit.opened) << visit.log;
  EXPECT_EQ(visit.console, "");
  const std::string head = visit.dom.substr(0, visit.dom.find("</head>"));
  EXPECT_THAT(head, HasSubstr("<title>beyond 0</title>")) << visit.log;
}

TEST(ReportPage, RefusesOtherResults) {
  const PackedModel model = Model();
  for (const char* bad :
       {R"({"results": 3})", R"({"results": [{}]})", R"({"recovery": [{"name": 1}]})",
        R"({"kl": [{"name": "a"}]})", R"({"blocks": []})", R"({"blocks": [{"block": "x"}]})"}) {
    ReportData data = Data(model);
    data.results = {{"bad.json", nlohmann::json::parse(bad)}};
    try {
      ReportPage(data);
      ADD_FAILURE() << bad;
    } catch (const Error& error) {
      EXPECT_EQ(error.name(), "report.bad_results");
      EXPECT_THAT(error.what(), HasSubstr("bad.json"));
    }
  }
}

TEST(Plot, DrawsEachLineUnderItsName) {
  if (!HasGnuplot()) GTEST_SKIP() << "needs gnuplot";
  const std::string svg = DrawSvg({"one",
                                   "block",
                                   "loss",
                                   true,
                                   {{"it's_a", {0, 1, 2}, {1, 0, 3}}, {"a<b>&", {0, 1}, {2, 4}}}});
  EXPECT_THAT(svg, AllOf(::testing::StartsWith("<svg"), HasSubstr(">it's_a<"),
                         HasSubstr(">a&lt;b>&amp;<"), HasSubstr("id='one-gpDot'"),
                         HasSubstr(std::string(kPlotInk)), Not(HasSubstr("id='gp"))));
  EXPECT_THROW(RunGnuplot("no such command\n"), Error);
}

TEST(Plot, ManyPointsDoNotFillThePipes) {
  if (!HasGnuplot()) GTEST_SKIP() << "needs gnuplot";
  PlotLine line{"many", {}, {}};
  for (int i = 0; i < 8000; ++i) {
    line.x.push_back(i);
    line.y.push_back(std::sqrt(i));
  }
  EXPECT_GT(DrawSvg({"many", "x", "y", false, {line}}).size(), 150000u);
}

TEST(ReportPage, HasItsPlots) {
  if (!HasGnuplot()) GTEST_SKIP() << "needs gnuplot";
  const PackedModel model = Model();
  ReportData data = Data(model);
  data.plots = true;
  data.results = {{"quantize.json", nlohmann::json::parse(kQuantize)}};
  EXPECT_THAT(ReportPage(data), AllOf(HasSubstr("id='clips-gpDot'"), HasSubstr("id='training-"),
                                      HasSubstr("<figcaption>")));
}

}  // namespace
}  // namespace flatquant
