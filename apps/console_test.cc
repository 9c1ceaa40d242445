#include "apps/console.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <functional>
#include <thread>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

std::string ErrorName(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.name();
  }
  return "no error";
}

TEST(Printable, OneLineWithoutControlCharacters) {
  EXPECT_EQ(Printable("plain, \u00e4\u4e2d"), "plain, \u00e4\u4e2d");
  EXPECT_EQ(Printable("a\nb\tc\x1b[31m\x7f"), "a?b?c?[31m?");
  EXPECT_EQ(Printable("\u009b31m\u00a0"), "?31m\u00a0");
  EXPECT_EQ(Printable("\xc2"), "\xc2");
}

TEST(Report, WritesAFileWhole) {
  const fs::path path = testing::ScratchFolder() / "r.json";
  std::ofstream(path) << "an older, longer result that must not shine through";
  Report(path.string()).WriteJson("{}");
  EXPECT_EQ(ReadFile(path), "{}\n");
}

TEST(Report, WritesIntoPipesAndDevicesWithoutReplacingThem) {
  const fs::path pipe = testing::ScratchFolder() / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::string read;
  std::thread reader([&] { std::getline(std::ifstream(pipe), read); });
  Report(pipe.string()).WriteJson("{\"a\":1}");
  reader.join();
  EXPECT_EQ(read, "{\"a\":1}");
  EXPECT_TRUE(fs::is_fifo(pipe));
}

TEST(Report, FailsEarly) {
  const fs::path folder = testing::ScratchFolder();
  EXPECT_EQ(ErrorName([&] { Report(folder.string()); }), "output.not_writable");
  EXPECT_EQ(ErrorName([&] { Report((folder / "missing" / "r.json").string()); }),
            "output.not_writable");
  EXPECT_EQ(ErrorName([&] { Report("/dev/null"); }), "no error");
  EXPECT_EQ(ErrorName([&] { Report("-"); }), "no error");
}

TEST(CheckCanCreate, LooksAtTheNearestExistingFolder) {
  const fs::path folder = testing::ScratchFolder();
  EXPECT_EQ(ErrorName([&] { CheckCanCreate(folder / "a" / "b" / "c"); }), "no error");
  EXPECT_EQ(ErrorName([&] { CheckCanCreate(folder / "a/"); }), "no error");
  EXPECT_EQ(ErrorName([] { CheckCanCreate("relative"); }), "no error");
  std::ofstream(folder / "file") << "x";
  EXPECT_EQ(ErrorName([&] { CheckCanCreate(folder / "file" / "b"); }), "output.not_writable");
  EXPECT_EQ(ErrorName([] { CheckCanCreate("/proc/nothing/here"); }), "output.not_writable");
}

}  // namespace
}  // namespace flatquant
