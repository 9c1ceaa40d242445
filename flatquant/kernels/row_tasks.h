#pragma once

#include <algorithm>
#include <cstdint>

#include "flatquant/base/thread_pool.h"

namespace flatquant {

// Cuts an operation over independent rows into tasks and calls
// kernel.run(args, begin, end) for each. row_elements: elements that a row
// touches; a task has 16k of them, some microseconds, or the pool's hand-over
// would cost more than the work.
template <typename Kernel, typename Args>
void RunRows(const Kernel& kernel, const Args& args, int64_t rows, int64_t row_elements,
             ThreadPool& pool) {
  constexpr int64_t kTaskElements = 16384;
  const int64_t grain = std::max<int64_t>(1, kTaskElements / std::max<int64_t>(1, row_elements));
  pool.ParallelFor(static_cast<size_t>(rows), static_cast<size_t>(grain),
                   [&](size_t begin, size_t end) {
                     kernel.run(args, static_cast<int64_t>(begin), static_cast<int64_t>(end));
                   });
}

}  // namespace flatquant
