#include "flatquant/compress/ops/parallel.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

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

}  // namespace

void SetOpThreads(int threads) {
  at::set_num_threads(1);
  SetBlasThreads(1);
  Pool() = std::make_unique<ThreadPool>(threads);
}

int OpThreads() { return Pool()->threads(); }

void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  Pool()->ParallelFor(static_cast<size_t>(n), static_cast<size_t>(grain),
                      [&body](size_t begin, size_t end) {
                        body(static_cast<int64_t>(begin), static_cast<int64_t>(end));
                      });
}

void ParallelForEach(int64_t n, const std::function<void(int, int64_t)>& body) {
  Pool()->ParallelForWorker(static_cast<size_t>(n), 1,
                            [&body](int worker, size_t begin, size_t end) {
                              for (; begin < end; ++begin)
                                body(worker, static_cast<int64_t>(begin));
                            });
}

}  // namespace flatquant::compress
