#pragma once

#include <filesystem>
#include <string>

namespace flatquant::testing {

// What headless Chromium made of a page.
struct BrowserVisit {
  bool opened = false;  // false: Chromium failed or took too long; see log
  std::string dom;      // the document after its scripts have run
  std::string console;  // what the page said on its console, errors included, line by line
  std::string log;      // all that Chromium wrote to stderr
};

// Opens a local page. Chromium's profile goes into a folder of its own.
BrowserVisit OpenInBrowser(const std::filesystem::path& page);

// Empty where a page can be opened at all, else why not: Chromium is not installed, or
// cannot start on this machine (a container that forbids its processes). Asked of an
// empty page, once per process; a cold start from a slow disk takes its time here.
std::string WhyNoBrowser();

}  // namespace flatquant::testing

// Skips the current test, saying so, where no browser runs.
#define FLATQUANT_NEEDS_BROWSER()                                                       \
  if (const std::string reason = ::flatquant::testing::WhyNoBrowser(); !reason.empty()) \
  GTEST_SKIP() << reason
