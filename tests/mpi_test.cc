// Spreads 'flatquant quantize' over processes, as mpirun starts them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

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

Arguments Spread(int processes, const Arguments& command) {
  Arguments all = {"mpirun", "-n", std::to_string(processes), "--oversubscribe"};
  if (::geteuid() == 0) all.push_back("--allow-run-as-root");
  // Open MPI's modules leak, and are gone when AddressSanitizer would ask who did.
  all.insert(all.end(), {"-x", "ASAN_OPTIONS=detect_leaks=0"});
  all.insert(all.end(), command.begin(), command.end());
  return all;
}

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    // "pid (name) state parent ...", where the name may hold anything.
    std::string text;
    std::getline(std::ifstream(entry.path() / "stat"), text);
    const size_t end = text.rfind(')');
    if (end == text.npos) continue;
    std::istringstream rest(text.substr(end + 1));
    std::string state;
    pid_t of = -1;
    rest >> state >> of;
    if (of == parent) children.push_back(std::stoi(entry.path().filename().string()));
  }
  return children;
}

class MpiTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!FLATQUANT_WITH_MPI) GTEST_SKIP() << "built without MPI";
    ChildProcess probe(Spread(1, {"true"}));
    if (probe.Wait() != 0) GTEST_SKIP() << "mpirun does not work here: " << probe.Err();
  }
};

TEST_F(MpiTest, TwoProcessesWriteTheBytesOfOne) {
  const fs::path alone = ScratchFolder() / "model";
  ChildProcess one(QuantizeDemo(alone));
  ASSERT_EQ(one.Wait(), 0) << one.Err();
  const fs::path together = ScratchFolder() / "model";
  ChildProcess two(Spread(2, QuantizeDemo(together)));
  ASSERT_EQ(two.Wait(), 0) << two.Err();
  ExpectSameModel(together, ModelFiles(alone));
  EXPECT_FALSE(fs::exists(JobOf(together)));
}

TEST_F(MpiTest, ADeadProcessEndsTheRunAndItIsResumed) {
  const fs::path alone = ScratchFolder() / "model";
  ChildProcess one(QuantizeDemo(alone));
  ASSERT_EQ(one.Wait(), 0) << one.Err();
  const fs::path out = ScratchFolder() / "model";
  {
    ChildProcess two(Spread(2, QuantizeDemo(out)));
    while (!fs::exists(JobOf(out) / "block-00000.safetensors") && !two.WaitFor(0.001)) {
    }
    const std::vector<pid_t> processes = ChildrenOf(two.pid());
    ASSERT_EQ(processes.size(), 2u) << two.Err();
    ::kill(processes[1], SIGKILL);
    EXPECT_TRUE(two.WaitFor(30)) << "mpirun waits for a dead process";
    EXPECT_NE(two.Wait(), 0);
    EXPECT_FALSE(fs::exists(out));
  }
  ChildProcess again(Spread(2, QuantizeDemo(out, {"--resume", "required"})));
  ASSERT_EQ(again.Wait(), 0) << again.Err();
  EXPECT_THAT(again.Err(), HasSubstr(" of 8 blocks are done"));
  ExpectSameModel(out, ModelFiles(alone));
}

TEST_F(MpiTest, WhatNeedsAnOrderIsRefused) {
  ChildProcess run(Spread(2, QuantizeDemo(ScratchFolder() / "model", {"--weights", "gptq"})));
  EXPECT_NE(run.Wait(), 0);
  EXPECT_THAT(run.Err(), HasSubstr("--weights gptq with 2 processes"));
  EXPECT_THAT(run.Err(), HasSubstr("[quantize.needs_order]"));
}

}  // namespace
}  // namespace flatquant
