// Decoding allocates nothing: every allocation of the process is counted.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

// Sanitizers replace malloc themselves.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<long> allocations = 0;
}  // namespace

// glibc's allocator, counted. operator new of the C++ library comes through here.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(n);
}
void* calloc(size_t n, size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_calloc(n, size);
}
void* realloc(void* p, size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_realloc(p, n);
}
void* aligned_alloc(size_t alignment, size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, n);
}
int posix_memalign(void** p, size_t alignment, size_t n) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  *p = __libc_memalign(alignment, n);
  return *p == nullptr ? ENOMEM : 0;
}
// Large buffers come straight from the system.
void* mmap(void* address, size_t n, int protection, int flags, int file, off_t offset) noexcept {
  allocations.fetch_add(1, std::memory_order_relaxed);
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, n, protection, flags, file, offset));
}
}

namespace flatquant {
namespace {

TEST(AllocationTest, TheCounterCounts) {
  const long before = allocations;
  auto a = std::make_unique<int>(1);
  asm volatile("" : : "r"(a.get()) : "memory");  // not optimised away
  AlignedBuffer<float> b(100);
  asm volatile("" : : "r"(b.data()) : "memory");
  AlignedBuffer<float> c(1 << 20);
  asm volatile("" : : "r"(c.data()) : "memory");
  EXPECT_GE(allocations - before, 3);
}

struct Case {
  const char* scheme;
  Precision precision;
  size_t batch;  // sequences
};

class DecodeAllocationTest : public ::testing::TestWithParam<Case> {};

TEST_P(DecodeAllocationTest, SixteenStepsAllocateNothing) {
  constexpr int kSteps = 16;
  // A thread allocates its scratch memory when it first gets a part of a loop, which
  // may be late: windows of steps are tried until one is clean. An allocation that
  // belongs to a step spoils every window.
  constexpr int kWindows = 40;
  const auto engine =
      Engine::FromPacked(RandomPackedModel(FullConfig(), Scheme::Parse(GetParam().scheme), 1),
                         {.threads = 2, .precision = GetParam().precision});
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<BatchItem> batch;
  const int32_t token = 7;
  for (size_t i = 0; i < GetParam().batch; ++i) {
    sequences.push_back(std::make_unique<Sequence>(*engine, kSteps * kWindows));
    batch.push_back({sequences.back().get(), {&token, 1}});
  }
  long fewest = -1;
  for (int window = 0; window < kWindows && fewest != 0; ++window) {
    const long before = allocations;
    for (int step = 0; step < kSteps; ++step) engine->ForwardBatch(batch);
    const long count = allocations - before;
    if (fewest < 0 || count < fewest) fewest = count;
  }
  EXPECT_EQ(fewest, 0) << "allocations in " << kSteps << " decode steps";
}

INSTANTIATE_TEST_SUITE_P(
    Models, DecodeAllocationTest,
    ::testing::Values(Case{"w4a4kv4", Precision::kF32, 1}, Case{"w4a4kv4", Precision::kBF16, 1},
                      Case{"w4a4kv4", Precision::kBF16, 5}, Case{"w4a16", Precision::kBF16, 1},
                      Case{"w16a16", Precision::kBF16, 1}, Case{"w16a16", Precision::kF32, 1}),
    [](const auto& info) {
      return std::string(info.param.scheme) +
             (info.param.precision == Precision::kF32 ? "_f32_" : "_bf16_") +
             std::to_string(info.param.batch);
    });

}  // namespace
}  // namespace flatquant

#endif
