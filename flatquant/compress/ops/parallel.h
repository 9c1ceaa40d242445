#pragma once

#include <cstdint>
#include <functional>

// Threads of the fused CPU operations. They are not OpenMP's: its threads spin
// while they wait, which on a machine with anything else to do costs ten times
// what it saves.
namespace flatquant::compress {

// From now on the operations run on this many threads; 0 takes every usable core.
// LibTorch's and OpenBLAS's own loops, small here, run on the calling thread. Not
// to be called while an operation runs. Without a call, one thread.
void SetOpThreads(int threads);
int OpThreads();

// Calls body(begin, end) on disjoint ranges that cover [0, n), each at most grain
// long, on whichever threads are free. Bodies must not use tensors but for their
// data.
void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

// As ParallelFor with a grain of 1, and tells body which of the OpThreads()
// workers it runs on: body(worker, index).
void ParallelForEach(int64_t n, const std::function<void(int, int64_t)>& body);

}  // namespace flatquant::compress
