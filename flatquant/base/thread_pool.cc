#include "flatquant/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// Set while this thread runs a loop body, so that nested loops run serially.
thread_local bool inside_loop = false;

}  // namespace

struct ThreadPool::State {
  std::vector<std::thread> workers;
  int size = 1;

  std::mutex mutex;  // guards all below but `next`
  std::condition_variable wake;
  std::condition_variable finished;
  uint64_t generation = 0;
  int running = 0;
  bool stop = false;
  std::exception_ptr failure;

  const std::function<void(int, size_t, size_t)>* body = nullptr;
  size_t n = 0;
  size_t grain = 1;
  std::atomic<size_t> next{0};

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

  void WorkerLoop(int worker) {
    uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stop || generation != seen; });
        if (stop) return;
        seen = generation;
      }
      Drain(worker);
      const std::lock_guard lock(mutex);
      if (--running == 0) finished.notify_one();
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  FLATQUANT_CHECK(threads >= 0);
  state_->size = threads == 0 ? UsableCores() : threads;
  for (int worker = 1; worker < state_->size; ++worker) {
    state_->workers.emplace_back([this, worker] { state_->WorkerLoop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->stop = true;
  }
  state_->wake.notify_all();
  for (std::thread& worker : state_->workers) worker.join();
}

int ThreadPool::threads() const { return state_->size; }

void ThreadPool::ParallelFor(size_t n, size_t grain,
                             const std::function<void(size_t, size_t)>& body) {
  ParallelForWorker(n, grain, [&body](int, size_t begin, size_t end) { body(begin, end); });
}

void ThreadPool::ParallelForWorker(size_t n, size_t grain,
                                   const std::function<void(int, size_t, size_t)>& body) {
  FLATQUANT_CHECK(grain > 0);
  State& state = *state_;
  if (n <= grain || state.size == 1 || inside_loop) {
    for (size_t begin = 0; begin < n; begin += grain) body(0, begin, std::min(n, begin + grain));
    return;
  }
  {
    const std::lock_guard lock(state.mutex);
    state.body = &body;
    state.n = n;
    state.grain = grain;
    state.next.store(0, std::memory_order_relaxed);
    state.failure = nullptr;
    state.running = state.size - 1;
    ++state.generation;
  }
  state.wake.notify_all();
  state.Drain(0);
  std::unique_lock lock(state.mutex);
  state.finished.wait(lock, [&] { return state.running == 0; });
  if (state.failure) std::rethrow_exception(state.failure);
}

int UsableCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace flatquant
