// Interrupts 'flatquant quantize' in every way that real runs are interrupted, and
// looks at what the next run makes of it.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <thread>

#include "flatquant/base/rng.h"
#include "tests/quantize_runs.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using testing::Arguments;
using testing::ChildProcess;
using testing::ExpectSameModel;
using ::testing::HasSubstr;
using testing::JobOf;
using testing::ModelFiles;
using testing::QuantizeDemo;
using testing::ScratchFolder;
using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// A run that nobody disturbs.
struct Undisturbed {
  std::map<std::string, std::string> files;
  double seconds = 0;
};
Undisturbed RunUndisturbed(const Arguments& more) {
  const fs::path out = ScratchFolder() / "model";
  const Clock::time_point start = Clock::now();
  ChildProcess run(QuantizeDemo(out, more));
  EXPECT_EQ(run.Wait(), 0) << run.Err();
  Undisturbed result{{}, SecondsSince(start)};
  result.files = ModelFiles(out);
  EXPECT_TRUE(fs::exists(out / "report.json"));
  EXPECT_FALSE(fs::exists(JobOf(out))) << "a finished run leaves no job";
  return result;
}

const Undisturbed& Default() {
  static const Undisturbed run = RunUndisturbed({});
  return run;
}

int FinishedBlocks(const fs::path& job) {
  int count = 0;
  std::error_code error;
  for (fs::directory_iterator at(job, error), end; !error && at != end; at.increment(error)) {
    const std::string name = at->path().filename().string();
    count += name.starts_with("block-") && name.ends_with(".safetensors") ? 1 : 0;
  }
  return count;
}

// Kills runs for `out` at random moments of a whole run's time until `kills` of them
// were killed, then lets one finish. Runs that finish before their moment are compared
// and count for nothing.
void KillAndResume(const Arguments& more, const Undisturbed& undisturbed, int kills) {
  const uint64_t seed = static_cast<uint64_t>(Clock::now().time_since_epoch().count());
  SCOPED_TRACE("seed " + std::to_string(seed));
  Rng rng(seed);
  const fs::path out = ScratchFolder() / "model";
  int killed = 0;
  while (killed < kills) {
    const int before = FinishedBlocks(JobOf(out));
    ChildProcess run(QuantizeDemo(out, more));
    // A run may also end of itself between the two.
    if (!run.WaitFor(rng.Uniform() * undisturbed.seconds)) run.Signal(SIGKILL);
    const int status = run.Wait();
    if (status == 128 + SIGKILL) {
      ++killed;
      if (fs::exists(out)) {  // killed between the model's last rename and its own end
        ExpectSameModel(out, undisturbed.files);
        fs::remove_all(out);
        fs::remove_all(JobOf(out));  // all of it or some
      } else {
        EXPECT_GE(FinishedBlocks(JobOf(out)), before) << "a kill lost finished blocks";
      }
      continue;
    }
    ASSERT_EQ(status, 0) << run.Err();
    ExpectSameModel(out, undisturbed.files);
    fs::remove_all(out);
  }
  const int before = FinishedBlocks(JobOf(out));
  ChildProcess last(QuantizeDemo(out, more));
  ASSERT_EQ(last.Wait(), 0) << last.Err();
  if (before > 0) {
    EXPECT_THAT(last.Err(), HasSubstr(": " + std::to_string(before) + " of 8 blocks are done"));
  }
  ExpectSameModel(out, undisturbed.files);
  EXPECT_FALSE(fs::exists(JobOf(out)));
}

// A job with some blocks, left by a run that SIGTERM ended.
fs::path StoppedRun(const Arguments& more = {}) {
  const fs::path out = ScratchFolder() / "model";
  ChildProcess run(QuantizeDemo(out, more));
  while (FinishedBlocks(JobOf(out)) < 2 && !run.WaitFor(0.001)) {
  }
  run.Signal(SIGTERM);
  EXPECT_EQ(run.Wait(), 75) << run.Err();
  const std::string err = run.Err();
  EXPECT_THAT(err, HasSubstr("flatquant: stopped; finished blocks are kept in " +
                             JobOf(out).string() + ": the same command goes on from there\n"));
  EXPECT_FALSE(fs::exists(out));
  EXPECT_GE(FinishedBlocks(JobOf(out)), 2);
  return out;
}

// The error line of a run that must fail before it changes anything.
std::string Refusal(const fs::path& out, const Arguments& more) {
  const int before = FinishedBlocks(JobOf(out));
  ChildProcess run(QuantizeDemo(out, more));
  EXPECT_EQ(run.Wait(), 1);
  EXPECT_EQ(FinishedBlocks(JobOf(out)), before);
  EXPECT_FALSE(fs::exists(out));
  return run.Err();
}

TEST(ResumeTest, KilledAtTwentyRandomMoments) { KillAndResume({}, Default(), 20); }

TEST(ResumeTest, KilledWhereBlocksDependOnThoseBefore) {
  const Arguments kGptq = {"--weights", "gptq"};
  KillAndResume(kGptq, RunUndisturbed(kGptq), 2);
  const Arguments kQuantized = {"--stream", "quantized", "--weights", "learned"};
  KillAndResume(kQuantized, RunUndisturbed(kQuantized), 2);
}

TEST(ResumeTest, StoppedBySignalRefusesOtherSettingsAndGoesOn) {
  const fs::path out = StoppedRun();
  const std::string error = Refusal(out, {"--lr", "0.01", "--per-linear-clips"});
  EXPECT_THAT(error, HasSubstr("--lr was 0.005, is 0.01, --per-linear-clips was no, is yes"));
  EXPECT_THAT(error, HasSubstr("--resume never"));
  EXPECT_THAT(error, HasSubstr("[job.changed]"));
  EXPECT_THAT(Refusal(out, {"--seed", "1", "--resume", "required"}),
              HasSubstr("--seed was 0, is 1, calibration data was 4 windows of 32 tokens"));
  EXPECT_THAT(Refusal(out, {"--restarts", "3"}), HasSubstr("--restarts was not given, is 3"));
  ChildProcess run(QuantizeDemo(out, {"--resume", "required"}));
  EXPECT_EQ(run.Wait(), 0) << run.Err();
  ExpectSameModel(out, Default().files);
}

TEST(ResumeTest, DamagedStatesAndStrangeFoldersAreRefused) {
  EXPECT_THAT(Refusal(ScratchFolder() / "model", {"--resume", "required"}),
              HasSubstr("[job.nothing_to_resume]"));
  const fs::path out = StoppedRun();
  const fs::path block = JobOf(out) / "block-00001.safetensors";
  const std::string bytes = ReadFile(block);
  const auto write = [](const fs::path& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  };
  std::string flipped = bytes;
  flipped[flipped.size() / 2] ^= 1;
  write(block, flipped);
  EXPECT_THAT(Refusal(out, {}), HasSubstr("[job.damaged]"));
  write(block, bytes.substr(0, bytes.size() / 2));
  EXPECT_THAT(Refusal(out, {}), HasSubstr("[safetensors.out_of_bounds]"));
  write(block, bytes);
  const fs::path strange = JobOf(out) / "notes.txt";
  write(strange, "mine");
  EXPECT_THAT(Refusal(out, {}), HasSubstr("[job.not_a_job]"));
  EXPECT_THAT(Refusal(out, {"--resume", "never"}), HasSubstr("[job.not_a_job]"));
  EXPECT_EQ(ReadFile(strange), "mine");
  // Without it, what is there can be discarded for other settings.
  fs::remove(strange);
  ChildProcess run(QuantizeDemo(out, {"--lr", "0.01", "--resume", "never"}));
  EXPECT_EQ(run.Wait(), 0) << run.Err();
  EXPECT_TRUE(ModelFiles(out) != Default().files);
}

TEST(ResumeTest, PackingIsRetriedWithoutCalibratingAgain) {
  const fs::path out = ScratchFolder() / "model";
  // The packed model does not fit under this limit, a block's state does. It counts in
  // blocks of 1024 bytes.
  const std::string limited = "trap '' XFSZ; ulimit -f 2000; exec \"$@\"";
  Arguments arguments = {"bash", "-c", limited, "bash"};
  const Arguments quantize = QuantizeDemo(out);
  arguments.insert(arguments.end(), quantize.begin(), quantize.end());
  ChildProcess first(arguments);
  EXPECT_EQ(first.Wait(), 1);
  EXPECT_THAT(first.Err(), HasSubstr("[file.write]"));
  EXPECT_FALSE(fs::exists(out));
  EXPECT_EQ(FinishedBlocks(JobOf(out)), 8);
  ChildProcess second(QuantizeDemo(out));
  EXPECT_EQ(second.Wait(), 0) << second.Err();
  EXPECT_THAT(second.Err(), HasSubstr(": 8 of 8 blocks are done"));
  ExpectSameModel(out, Default().files);
}

}  // namespace
}  // namespace flatquant
