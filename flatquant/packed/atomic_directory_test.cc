#include "flatquant/packed/atomic_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "flatquant/packed/test_models.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using packed_test::ExpectError;
using packed_test::FileText;
using packed_test::Names;
using packed_test::WriteFile;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

// Folders of these tests may be replaced if they hold a file "ours".
bool IsOurs(const fs::path& folder) { return fs::exists(folder / "ours"); }

void WriteOurs(const fs::path& path, const std::string& content) {
  AtomicDirectory directory(path, IsOurs);
  WriteFile(directory.path() / "ours", content);
  directory.Commit();
}

// A process id that no process has any more.
pid_t DeadProcess() {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);
  return child;
}

TEST(AtomicDirectory, AppearsOnCommitAndNotBefore) {
  const fs::path parent = testing::ScratchFolder();
  {
    AtomicDirectory directory(parent / "out", IsOurs);
    WriteFile(directory.path() / "ours", "x");
    EXPECT_FALSE(fs::exists(parent / "out"));
    EXPECT_EQ(directory.path().parent_path(), fs::canonical(parent));
    directory.Commit();
    EXPECT_TRUE(fs::exists(parent / "out" / "ours"));
  }
  EXPECT_THAT(Names(parent), ElementsAre("out"));
  { AtomicDirectory given_up(parent / "other", IsOurs); }
  EXPECT_THAT(Names(parent), ElementsAre("out"));
}

TEST(AtomicDirectory, ReplacesWholeFolders) {
  const fs::path parent = testing::ScratchFolder();
  WriteOurs(parent / "out", "old");
  WriteFile(parent / "out" / "more", "old too");
  WriteOurs(parent / "out", "new");
  EXPECT_EQ(FileText(parent / "out" / "ours"), "new");
  EXPECT_THAT(Names(parent / "out"), ElementsAre("ours"));
  EXPECT_THAT(Names(parent), ElementsAre("out"));
}

TEST(AtomicDirectory, EveryWayOfWritingTheName) {
  const fs::path parent = testing::ScratchFolder();
  WriteOurs(parent / "a" / "b" / "out/", "1");
  EXPECT_EQ(FileText(parent / "a/b/out/ours"), "1");
  WriteOurs(parent / "a/./b/../b/out", "2");
  EXPECT_EQ(FileText(parent / "a/b/out/ours"), "2");
  fs::create_directory(parent / "empty");
  WriteOurs(parent / "empty", "3");
  EXPECT_EQ(FileText(parent / "empty/ours"), "3");
  // A link to a folder stays a link; the folder behind it is replaced.
  fs::create_directory_symlink(parent / "a/b/out", parent / "link");
  WriteOurs(parent / "link", "4");
  EXPECT_TRUE(fs::is_symlink(parent / "link"));
  EXPECT_EQ(FileText(parent / "a/b/out/ours"), "4");
  EXPECT_THAT(Names(parent / "a/b"), ElementsAre("out"));
  const fs::path before = fs::current_path();
  fs::current_path(parent);
  WriteOurs("here", "5");
  fs::current_path(before);
  EXPECT_EQ(FileText(parent / "here/ours"), "5");
}

TEST(AtomicDirectory, RefusesWhatIsNotOurs) {
  const fs::path parent = testing::ScratchFolder();
  fs::create_directory(parent / "folder");
  WriteFile(parent / "folder" / "thesis.txt", "x");
  WriteFile(parent / "file", "x");
  fs::create_symlink(parent / "nowhere", parent / "dangling");
  for (const char* name : {"folder", "file", "dangling"}) {
    ExpectError("packed.not_replaceable", [&] { AtomicDirectory(parent / name, IsOurs); });
    ExpectError("packed.not_replaceable", [&] { CheckDestination(parent / name, IsOurs); });
  }
  ExpectError("packed.not_replaceable", [] { AtomicDirectory("/", IsOurs); });
  ExpectError("file.create", [] { AtomicDirectory("", IsOurs); });
  ExpectError("file.create", [&] { AtomicDirectory(parent / "file" / "out", IsOurs); });
  CheckDestination(parent / "new", IsOurs);
  EXPECT_THAT(Names(parent), ElementsAre("dangling", "file", "folder"));
  EXPECT_EQ(FileText(parent / "folder" / "thesis.txt"), "x");
}

TEST(AtomicDirectory, RefusesWhatAppearedMeanwhile) {
  const fs::path parent = testing::ScratchFolder();
  {
    AtomicDirectory directory(parent / "out", IsOurs);
    fs::create_directory(parent / "out");
    WriteFile(parent / "out" / "thesis.txt", "x");
    ExpectError("packed.not_replaceable", [&] { directory.Commit(); });
  }
  EXPECT_EQ(FileText(parent / "out" / "thesis.txt"), "x");
  EXPECT_THAT(Names(parent), ElementsAre("out"));
}

TEST(AtomicDirectory, BothWaysOfReplacing) {
  const fs::path parent = testing::ScratchFolder();
  const auto make = [&](const char* name) {
    fs::create_directory(parent / name);
    WriteFile(parent / name / "ours", name);
  };
  make("new");
  make("out");
  if (packed_internal::Exchange(parent / "new", parent / "out")) {
    EXPECT_EQ(FileText(parent / "out/ours"), "new");
    EXPECT_EQ(FileText(parent / "new/ours"), "out");
  }
  make("newer");
  packed_internal::TwoRenames(parent / "newer", parent / "out", parent / "aside");
  EXPECT_EQ(FileText(parent / "out/ours"), "newer");
  EXPECT_TRUE(fs::exists(parent / "aside"));
  EXPECT_FALSE(fs::exists(parent / "newer"));
  // When the second rename fails, the first is taken back.
  ExpectError("file.rename", [&] {
    packed_internal::TwoRenames(parent / "gone", parent / "out", parent / "aside2");
  });
  EXPECT_EQ(FileText(parent / "out/ours"), "newer");
  EXPECT_FALSE(fs::exists(parent / "aside2"));
}

TEST(AtomicDirectory, RemovesWhatDeadWritersLeft) {
  const fs::path parent = testing::ScratchFolder();
  const std::string dead = std::to_string(DeadProcess());
  const auto leave = [&](const std::string& name) {
    fs::create_directories(parent / name / "deeper");
    WriteFile(parent / name / "ours", name);
  };
  leave(".out." + dead + ".0.partial");
  leave(".out." + dead + ".1.replaced");
  // Not ours to touch: other names, other forms.
  leave(".out2." + dead + ".0.partial");
  leave(".out.x.0.partial");
  leave(".out." + dead + ".partial");
  leave("out." + dead + ".0.partial");
  WriteOurs(parent / "out", "new");
  EXPECT_EQ(FileText(parent / "out/ours"), "new");
  EXPECT_THAT(Names(parent),
              UnorderedElementsAre("out", ".out2." + dead + ".0.partial", ".out.x.0.partial",
                                   ".out." + dead + ".partial", "out." + dead + ".0.partial"));
}

TEST(AtomicDirectory, PutsBackAnOldFolderThatADeadWriterLeftAside) {
  const fs::path parent = testing::ScratchFolder();
  const fs::path aside = parent / (".out." + std::to_string(DeadProcess()) + ".0.replaced");
  WriteOurs(aside, "old");
  { AtomicDirectory fails(parent / "out", IsOurs); }
  EXPECT_EQ(FileText(parent / "out/ours"), "old");
  EXPECT_THAT(Names(parent), ElementsAre("out"));
}

TEST(AtomicDirectory, LeavesLivingWritersAlone) {
  const fs::path parent = testing::ScratchFolder();
  AtomicDirectory first(parent / "out", IsOurs);
  WriteFile(first.path() / "ours", "first");
  // In another process, whose own locks would not stop it.
  const pid_t child = fork();
  if (child == 0) {
    // The child inherits the first writer's lock, which only exec or exit drops;
    // that does not matter here: it is taken either way.
    WriteOurs(parent / "out", "second");
    _exit(FileText(parent / "out/ours") == "second" ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(FileText(first.path() / "ours"), "first");
  first.Commit();
  EXPECT_EQ(FileText(parent / "out/ours"), "first");
  EXPECT_THAT(Names(parent), ElementsAre("out"));
}

}  // namespace
}  // namespace flatquant
