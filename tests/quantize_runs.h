#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "flatquant/base/file.h"
#include "tests/support/run_binary.h"
#include "tests/support/shared_data.h"

// Short runs of 'flatquant quantize' on the embedded model, for the tests that
// interrupt them or spread them over processes.
namespace flatquant::testing {

using Arguments = std::vector<std::string>;

// Enough of everything that a real run has: calibration text, training, all blocks. One
// thread: the bytes depend on the number.
inline Arguments QuantizeDemo(const std::filesystem::path& out, const Arguments& more = {}) {
  const std::string demo = SourcePath("models/demo-7m").string();
  Arguments all = {FLATQUANT_BINARY,
                   "quantize",
                   demo,
                   "-o",
                   out.string(),
                   "--calib",
                   "jsonl:" + demo + "/selfgen-calib.jsonl",
                   "--nsamples",
                   "4",
                   "--seqlen",
                   "32",
                   "--epochs",
                   "2",
                   "--batch",
                   "2",
                   "-t",
                   "1"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

inline std::filesystem::path JobOf(const std::filesystem::path& out) {
  return out.string() + ".job";
}

// The files of a packed model by name, but for report.json, which holds timings.
inline std::map<std::string, std::string> ModelFiles(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    const std::string name = entry.path().filename().string();
    if (name != "report.json") files[name] = ReadFile(entry.path());
  }
  return files;
}

// Not EXPECT_EQ, which would print the files.
inline void ExpectSameModel(const std::filesystem::path& actual,
                            const std::map<std::string, std::string>& expected) {
  ASSERT_TRUE(std::filesystem::exists(actual)) << actual;
  const std::map<std::string, std::string> files = ModelFiles(actual);
  EXPECT_EQ(files.size(), expected.size());
  EXPECT_GE(files.size(), 3u);
  for (const auto& [name, bytes] : expected) {
    const auto found = files.find(name);
    EXPECT_TRUE(found != files.end() && found->second == bytes) << name << " differs";
  }
}

}  // namespace flatquant::testing
