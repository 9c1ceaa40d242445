#include "tests/support/browser.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "tests/support/shared_data.h"

namespace flatquant::testing {
namespace {

namespace fs = std::filesystem;

std::string Contents(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

std::string LinesWith(const std::string& text, const std::string& word) {
  std::istringstream lines(text);
  std::string found;
  for (std::string line; std::getline(lines, line);) {
    if (line.find(word) != std::string::npos) found += line + '\n';
  }
  return found;
}

// One try, in a profile of its own.
BrowserVisit Visit(const fs::path& page) {
  const fs::path folder = ScratchFolder();
  const std::string base = folder.string();
  // Root needs --no-sandbox; containers often have a tiny /dev/shm; nothing is fetched.
  const std::string command =
      "HOME='" + base + "' timeout 60 chromium --headless --no-sandbox --disable-gpu" +
      " --disable-dev-shm-usage --disable-background-networking --no-first-run" +
      " --user-data-dir='" + base + "/profile' --enable-logging=stderr --dump-dom 'file://" +
      fs::absolute(page).string() + "' > '" + base + "/dom' 2> '" + base + "/log'";
  BrowserVisit visit;
  visit.opened = std::system(command.c_str()) == 0;
  visit.dom = Contents(folder / "dom");
  visit.log = Contents(folder / "log");
  visit.console = LinesWith(visit.log, "CONSOLE");
  return visit;
}

std::string FindBrowser() {
  if (std::system("command -v chromium > /dev/null 2>&1") != 0) return "needs chromium";
  const fs::path page = ScratchFolder() / "empty.html";
  std::ofstream(page) << "<!doctype html><title>empty</title>";
  const BrowserVisit visit = OpenInBrowser(page);
  if (visit.opened && visit.dom.find("<title>empty</title>") != std::string::npos) return "";
  constexpr size_t kShown = 2000;
  return "chromium cannot open an empty page here: " +
         visit.log.substr(0, std::min(kShown, visit.log.size()));
}

}  // namespace

BrowserVisit OpenInBrowser(const fs::path& page) {
  // On a busy machine Chromium sometimes hangs as it starts.
  const BrowserVisit first = Visit(page);
  return first.opened ? first : Visit(page);
}

std::string WhyNoBrowser() {
  static const std::string reason = FindBrowser();
  return reason;
}

}  // namespace flatquant::testing
