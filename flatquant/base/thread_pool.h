#pragma once

#include <cstddef>
#include <memory>

#include "flatquant/base/function_ref.h"

namespace flatquant {

// A fixed set of threads for data-parallel loops. The calling thread works too,
// so a pool of 1 has no thread of its own. One loop runs at a time; loops must
// not nest (a nested call runs serially on its thread).
//
// A loop of microseconds is worth cutting: waiting threads spin for a moment before
// they sleep, and a loop waits only for those that joined it, so that a machine busy
// with other work costs parallelism, not time. Nothing here allocates after the
// constructor.
class ThreadPool {
 public:
  // threads >= 1; 0 takes the number of usable cores (the affinity mask's).
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls body(begin, end) on disjoint ranges that cover [0, n), each at most
  // grain long (the last may be shorter), in no particular order. Returns when
  // all are done; the first exception of a body is rethrown here.
  void ParallelFor(size_t n, size_t grain, FunctionRef<void(size_t, size_t)> body);

  // As ParallelFor, and tells body which of the threads() workers it runs on,
  // for scratch memory: body(worker, begin, end).
  void ParallelForWorker(size_t n, size_t grain, FunctionRef<void(int, size_t, size_t)> body);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The number of cores that this process may use.
int UsableCores();

}  // namespace flatquant
