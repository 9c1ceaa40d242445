#include "flatquant/compress/ops/parallel.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <omp.h>

#include <memory>

#include "flatquant/base/thread_pool.h"

namespace flatquant::compress {
namespace {

std::unique_ptr<ThreadPool>& Pool() {
  static auto pool = std::make_unique<ThreadPool>(1);
  return pool;
}

// OpenBLAS, where LibTorch uses it, has threads of its own, which LibTorch does
// not control.
void SetBlasThreads(int threads) {
  using SetThreads = void (*)(int);
  void* const found = dlsym(RTLD_DEFAULT, "openblas_set_num_threads");
  if (found != nullptr) reinterpret_cast<SetThreads>(found)(threads);
}

// oneDNN would start OpenMP threads of its own for each of the pool's.
void KeepOpenMpOut(int worker) {
  thread_local bool done = worker == 0;  // the caller's setting is its own
  if (done) return;
  omp_set_num_threads(1);
  done = true;
}

}  // namespace

void SetOpThreads(int threads) {
  at::set_num_threads(1);
  SetBlasThreads(1);
  Pool() = std::make_unique<ThreadPool>(threads);
}

int OpThreads() { return Pool()->threads(); }

void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  Pool()->ParallelForWorker(static_cast<size_t>(n), static_cast<size_t>(grain),
                            [&body](int worker, size_t begin, size_t end) {
                              KeepOpenMpOut(worker);
                              body(static_cast<int64_t>(begin), static_cast<int64_t>(end));
                            });
}

void ParallelForEach(int64_t n, const std::function<void(int, int64_t)>& body) {
  Pool()->ParallelForWorker(static_cast<size_t>(n), 1,
                            [&body](int worker, size_t begin, size_t end) {
                              KeepOpenMpOut(worker);
                              for (; begin < end; ++begin)
                                body(worker, static_cast<int64_t>(begin));
                            });
}

}  // namespace flatquant::compress
