#include "flatquant/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// Set while this thread runs a loop body, so that nested loops run serially.
thread_local bool inside_loop = false;

// How long a thread polls before it sleeps. Waking a sleeping thread costs it some
// 50 microseconds; the gaps between the loops of a forward pass are shorter. Whoever
// waits longer than this waits for a thread that has lost its core, or for nothing.
constexpr std::chrono::microseconds kSpin{60};

// Tells the core, and the other hyperthread on it, that this thread only polls.
void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

// Polls ready() for at most `limit`; returns its last answer.
template <typename Ready>
bool SpinUntil(std::chrono::microseconds limit, const Ready& ready) {
  if (ready()) return true;
  if (limit.count() == 0) return false;
  const auto end = std::chrono::steady_clock::now() + limit;
  do {
    constexpr int kPausesPerClock = 16;  // reading the clock costs about one pause
    for (int i = 0; i < kPausesPerClock; ++i) {
      Pause();
      if (ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

// The state of the current loop, in one atomic word so that it changes as one:
// how many workers are inside the loop, whether more may join it, whether the
// caller sleeps until the last one has left, and the loop's number.
constexpr uint64_t kActive = 0xffff;
constexpr uint64_t kOpen = 1 << 16;
constexpr uint64_t kCallerSleeps = 1 << 17;
constexpr uint64_t kStop = 1 << 18;
constexpr int kNumberShift = 20;

constexpr uint64_t LoopNumber(uint64_t word) { return word >> kNumberShift; }

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  int size = 1;
  std::chrono::microseconds spin{0};

  // The loop: written by the caller while nobody is inside and nobody can join
  // (joining acquires what opening released).
  std::optional<FunctionRef<void(int, size_t, size_t)>> body;
  size_t n = 0;
  size_t grain = 1;

  // On cache lines of their own: every thread writes `next`, waiting ones read `word`.
  alignas(64) std::atomic<size_t> next{0};
  alignas(64) std::atomic<uint64_t> word{0};
  alignas(64) std::atomic<int> sleepers{0};

  std::mutex mutex;  // guards `failure`, and the sleep of threads
  std::condition_variable wake;
  std::condition_variable finished;
  std::exception_ptr failure;

  void Drain(int worker) {
    inside_loop = true;
    try {
      for (;;) {
        const size_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= n) break;
        (*body)(worker, begin, std::min(n, begin + grain));
      }
    } catch (...) {
      next.store(n, std::memory_order_relaxed);  // nobody needs the rest
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
    inside_loop = false;
  }

  // Whether a worker that has seen loop number `seen` has something to do.
  bool HasNews(uint64_t seen) const {
    const uint64_t now = word.load(std::memory_order_seq_cst);
    return (now & kStop) != 0 || ((now & kOpen) != 0 && LoopNumber(now) != seen);
  }

  void WaitForNews(uint64_t seen) {
    if (SpinUntil(spin, [&] { return HasNews(seen); })) return;
    std::unique_lock lock(mutex);
    // Either Open sees this sleeper, or HasNews sees what Open stored before it
    // looked: both are sequentially consistent.
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, [&] { return HasNews(seen); });
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      WaitForNews(seen);
      uint64_t now = word.load(std::memory_order_relaxed);
      if ((now & kStop) != 0) return;
      if ((now & kOpen) == 0 || LoopNumber(now) == seen) continue;  // closed meanwhile
      if (!word.compare_exchange_weak(now, now + 1, std::memory_order_acquire,
                                      std::memory_order_relaxed)) {
        continue;
      }
      seen = LoopNumber(now);
      Drain(worker);
      const uint64_t before = word.fetch_sub(1, std::memory_order_release);
      if ((before & kCallerSleeps) != 0 && (before & kActive) == 1) {
        { const std::lock_guard lock(mutex); }  // the caller waits by now
        finished.notify_one();
      }
    }
  }

  void Open() {
    next.store(0, std::memory_order_relaxed);
    const uint64_t number = LoopNumber(word.load(std::memory_order_relaxed)) + 1;
    word.store(number << kNumberShift | kOpen, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) == 0) return;
    { const std::lock_guard lock(mutex); }  // a worker between its look and its sleep
    wake.notify_all();
  }

  // Lets nobody join any more and waits for those who did.
  void Close() {
    const auto all_left = [&] { return (word.load(std::memory_order_acquire) & kActive) == 0; };
    word.fetch_and(~kOpen, std::memory_order_relaxed);
    if (SpinUntil(spin, all_left)) return;
    std::unique_lock lock(mutex);
    word.fetch_or(kCallerSleeps, std::memory_order_relaxed);
    finished.wait(lock, all_left);
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  FLATQUANT_CHECK(threads >= 0 && threads <= static_cast<int>(kActive));
  const int cores = UsableCores();
  state_->size = threads == 0 ? cores : threads;
  // With more threads than cores, one that polls keeps one that works from running.
  if (state_->size <= cores) state_->spin = kSpin;
  for (int worker = 1; worker < state_->size; ++worker) {
    state_->workers.emplace_back([this, worker] { state_->WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  state_->word.fetch_or(kStop, std::memory_order_seq_cst);
  { const std::lock_guard lock(state_->mutex); }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return state_->size; }

void ThreadPool::ParallelFor(size_t n, size_t grain, FunctionRef<void(size_t, size_t)> body) {
  ParallelForWorker(n, grain, [&body](int, size_t begin, size_t end) { body(begin, end); });
}

void ThreadPool::ParallelForWorker(size_t n, size_t grain,
                                   FunctionRef<void(int, size_t, size_t)> body) {
  FLATQUANT_CHECK(grain > 0);
  State& state = *state_;
  if (n <= grain || state.size == 1 || inside_loop) {
    for (size_t begin = 0; begin < n; begin += grain) body(0, begin, std::min(n, begin + grain));
    return;
  }
  state.body = body;
  state.n = n;
  state.grain = grain;
  state.Open();
  state.Drain(0);
  state.Close();
  if (state.failure) std::rethrow_exception(std::exchange(state.failure, nullptr));
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace flatquant
