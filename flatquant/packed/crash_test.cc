#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "flatquant/base/rng.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/test_models.h"

// What remains of a model on disk when its writer dies or the disk is full.
namespace flatquant {
namespace {

namespace fs = std::filesystem;
using packed_test::FileText;
using packed_test::Names;
using packed_test::SmallConfig;
using packed_test::SourceFolder;
using packed_test::WriteFile;
using ::testing::ElementsAre;

// Exit statuses of children, which cannot report failures themselves.
enum Outcome { kAsWanted = 0, kNoError = 1, kOtherError = 2, kCannotMount = 3 };

template <typename Body>
int InChild(const Body& body) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// The outcome of a write that must fail for want of space.
Outcome ExpectNoSpace(const PackedModel& model, const fs::path& source, const fs::path& out) {
  try {
    WritePackedModel(model, source, out);
    return kNoError;
  } catch (const Error& error) {
    if (error.name() == "file.write") return kAsWanted;
    std::fprintf(stderr, "%s\n", error.what());
    return kOtherError;
  }
}

class Crash : public ::testing::Test {
 protected:
  Crash() : source_(SourceFolder(SmallConfig())), parent_(testing::ScratchFolder()) {
    WriteFile(source_ / "tokenizer.json", std::string(50000, 't'));
  }

  PackedModel Model(uint64_t seed) const {
    PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, seed);
    model.provenance["seed"] = std::to_string(seed);
    return model;
  }

  // Which model lies at a path; it must be complete.
  std::string SeedAt(const fs::path& path) const {
    const PackedModel model = ReadPackedModel(path);
    CheckCodes(model, path.string());
    EXPECT_EQ(FileText(path / "tokenizer.json").size(), 50000u);
    return model.provenance.at("seed");
  }

  fs::path source_;
  fs::path parent_;
};

TEST_F(Crash, FileSizeLimitLeavesTheOldModelOrNone) {
  // The limit passes through all parts: configuration, weights, tokenizer.
  for (rlim_t limit : {rlim_t{0}, rlim_t{100}, rlim_t{3000}, rlim_t{20000}, rlim_t{49999}}) {
    for (const bool replace : {false, true}) {
      const fs::path out = parent_ / ("out" + std::to_string(limit) + (replace ? "r" : "n"));
      if (replace) WritePackedModel(Model(1), source_, out);
      const PackedModel next = Model(2);
      const int outcome = InChild([&] {
        signal(SIGXFSZ, SIG_IGN);  // so that write fails with EFBIG
        const rlimit tight = {limit, limit};
        setrlimit(RLIMIT_FSIZE, &tight);
        return ExpectNoSpace(next, source_, out);
      });
      EXPECT_EQ(outcome, kAsWanted) << "limit " << limit;
      if (replace) {
        EXPECT_EQ(SeedAt(out), "1");
      } else {
        EXPECT_FALSE(fs::exists(out));
      }
      fs::remove_all(out);
      EXPECT_TRUE(Names(parent_).empty());
    }
  }
}

TEST_F(Crash, FullDiskLeavesTheOldModel) {
  const PackedModel old = Model(1);
  const PackedModel next = Model(2);
  // A small file system, room for one model (about 80 kB) but not for two, in a
  // mount name space of the child's own, which ends with it.
  const int outcome = InChild([&]() -> int {
    if (unshare(CLONE_NEWNS) != 0 ||
        mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        mount("none", parent_.c_str(), "tmpfs", 0, "size=112k") != 0) {
      return kCannotMount;
    }
    const fs::path out = parent_ / "out";
    WritePackedModel(old, source_, out);
    const Outcome first = ExpectNoSpace(next, source_, out);
    if (first != kAsWanted) return first;
    if (Names(parent_) != std::vector<std::string>{"out"}) return kOtherError;
    return SeedAt(out) == "1" ? kAsWanted : kOtherError;
  });
  if (outcome == kCannotMount) GTEST_SKIP() << "mounting a small file system needs privileges";
  EXPECT_EQ(outcome, kAsWanted);
}

TEST_F(Crash, KillAtAnyMomentLeavesAWholeModelOrNone) {
  const uint64_t seed = static_cast<uint64_t>(getpid());
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  const fs::path out = parent_ / "out";
  constexpr uint64_t kShard = 20'000;  // two shards
  const PackedModel models[2] = {Model(0), Model(1)};
  const auto start = std::chrono::steady_clock::now();
  WritePackedModel(models[0], source_, parent_ / "timed", {}, kShard);
  const auto one_write = std::chrono::duration_cast<std::chrono::microseconds>(
      std::chrono::steady_clock::now() - start);
  fs::remove_all(parent_ / "timed");
  std::string last;
  for (int round = 0; round < 30; ++round) {
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      for (int i = 0;; ++i) WritePackedModel(models[i % 2], source_, out, {}, kShard);
    }
    // Up to about three writes: the first, and replacements.
    usleep(static_cast<useconds_t>(rng.Below(3 * static_cast<uint64_t>(one_write.count()))));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the writer failed by itself";
    if (!fs::exists(out)) {
      // Only before the first model was complete, as renames here are atomic.
      EXPECT_EQ(last, "");
      continue;
    }
    last = SeedAt(out);
    EXPECT_TRUE(last == "0" || last == "1");
  }
  EXPECT_NE(last, "") << "no writer lived long enough to finish";
  // The next writer leaves nothing but its own model.
  WritePackedModel(Model(7), source_, out);
  EXPECT_EQ(SeedAt(out), "7");
  EXPECT_THAT(Names(parent_), ElementsAre("out"));
}

}  // namespace
}  // namespace flatquant
