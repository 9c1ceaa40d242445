#include "flatquant/base/thread_pool.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

TEST(ThreadPoolTest, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (size_t n : {0, 1, 7, 1000}) {
      for (size_t grain : {1, 3, 64}) {
        std::vector<std::atomic<int>> hits(n);
        pool.ParallelFor(n, grain, [&](size_t begin, size_t end) {
          EXPECT_LE(end - begin, grain);
          for (size_t i = begin; i < end; ++i) hits[i]++;
        });
        for (const auto& hit : hits) EXPECT_EQ(hit, 1);
      }
    }
  }
}

TEST(ThreadPoolTest, RethrowsAndStaysUsable) {
  ThreadPool pool(3);
  EXPECT_THROW(pool.ParallelFor(100, 1,
                                [](size_t begin, size_t) {
                                  if (begin == 50) throw Error("a.b", "", "x");
                                }),
               Error);
  std::atomic<int> count = 0;
  pool.ParallelFor(100, 1, [&](size_t, size_t) { ++count; });
  EXPECT_EQ(count, 100);
}

TEST(ThreadPoolTest, NestedLoopsRunSerially) {
  ThreadPool pool(2);
  std::atomic<int> count = 0;
  pool.ParallelFor(
      4, 1, [&](size_t, size_t) { pool.ParallelFor(10, 1, [&](size_t, size_t) { ++count; }); });
  EXPECT_EQ(count, 40);
}

TEST(ThreadPoolTest, WorkersAreNumberedAndRunOneBodyAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  for (int loop = 0; loop < 200; ++loop) {
    pool.ParallelForWorker(64, 1, [&](int worker, size_t, size_t) {
      ASSERT_GE(worker, 0);
      ASSERT_LT(worker, 4);
      ASSERT_EQ(busy[static_cast<size_t>(worker)].fetch_add(1), 0);
      busy[static_cast<size_t>(worker)].fetch_sub(1);
    });
  }
}

// What a loop wrote is there when it returns, and its body is not called again:
// the results live on this stack frame. Pauses of every length let workers poll,
// fall asleep, and be caught on the way.
TEST(ThreadPoolTest, ResultsAreThereAfterEveryPause) {
  for (int threads : {2, 3, 9}) {
    ThreadPool pool(threads);
    for (int loop = 0; loop < 600; ++loop) {
      std::vector<size_t> values(17);  // not atomic: the loop's end must order the writes
      pool.ParallelFor(values.size(), 2, [&](size_t begin, size_t end) {
        for (size_t i = begin; i < end; ++i) values[i] = i + static_cast<size_t>(loop);
      });
      for (size_t i = 0; i < values.size(); ++i) {
        ASSERT_EQ(values[i], i + static_cast<size_t>(loop));
      }
      if (loop % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(loop % 120));
    }
  }
}

TEST(ThreadPoolTest, ThreadsReallyShareALoop) {
  ThreadPool pool(2);
  std::atomic<int> inside = 0;
  // Each half waits until the other has started: one thread alone would not end.
  pool.ParallelFor(2, 1, [&](size_t, size_t) {
    ++inside;
    while (inside < 2) std::this_thread::yield();
  });
  EXPECT_EQ(inside, 2);
}

// Processes that use every core, politely, as long as this object lives.
class BusyMachine {
 public:
  BusyMachine() {
    for (int i = 0; i < UsableCores(); ++i) {
      const pid_t child = fork();
      if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        setpriority(PRIO_PROCESS, 0, 10);
        for (;;) asm volatile("");
      }
      children_.push_back(child);
    }
  }
  ~BusyMachine() {
    for (pid_t child : children_) kill(child, SIGKILL);
    for (pid_t child : children_) waitpid(child, nullptr, 0);
  }

 private:
  std::vector<pid_t> children_;
};

// Seconds of many loops of some microseconds each, the fastest of several tries.
double SecondsOfSmallLoops(ThreadPool& pool) {
  double best = 1e9;
  for (int attempt = 0; attempt < 7; ++attempt) {
    const auto start = std::chrono::steady_clock::now();
    for (int loop = 0; loop < 3000; ++loop) {
      pool.ParallelFor(8, 1, [](size_t, size_t) {
        for (int i = 0; i < 1000; ++i) asm volatile("" : "+r"(i));
      });
    }
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  return best;
}

// Not a measurement: a pool that waits for threads which have no core falls behind
// by hundreds of times.
TEST(ThreadPoolTest, SmallLoopsSurviveABusyMachine) {
  ThreadPool pool(std::max(2, UsableCores()));
  const double quiet = SecondsOfSmallLoops(pool);
  const BusyMachine busy;
  EXPECT_LT(SecondsOfSmallLoops(pool), 10 * quiet);
}

TEST(ThreadPoolTest, MoreThreadsThanCoresDoNotCollapse) {
  ThreadPool few(2), many(4 * UsableCores());
  EXPECT_LT(SecondsOfSmallLoops(many), 50 * SecondsOfSmallLoops(few));
}

}  // namespace
}  // namespace flatquant
