#include "flatquant/kernels/limits/limits.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "flatquant/base/cpu_features.h"
#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {
namespace {

using Clock = std::chrono::steady_clock;

// Runs work(worker) on all threads at once and returns the seconds from the first
// one's start to the last one's end.
template <typename Work>
double Together(ThreadPool& pool, const Work& work) {
  const size_t threads = static_cast<size_t>(pool.threads());
  std::atomic<size_t> arrived{0};
  std::vector<Clock::time_point> begin(threads);
  std::vector<Clock::time_point> end(threads);
  // Whoever has arrived waits for the others, so no thread takes two shares. The
  // deadline is for a caller inside a loop, where shares run one after another.
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(50);
  pool.ParallelFor(threads, 1, [&](size_t share, size_t) {
    ++arrived;
    while (arrived < threads && Clock::now() < deadline) {
    }
    begin[share] = Clock::now();
    work(share);
    end[share] = Clock::now();
  });
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

// Operations per second of a register loop on all threads.
double BestRate(ThreadPool& pool, double (*loop)(int64_t rounds)) {
  // A try is far longer than the threads' start, and shorter than a scheduler's time
  // slice, so that some of them pass without a neighbour's interruption.
  constexpr double kTrySeconds = 2e-3;
  constexpr int kTries = 12;
  int64_t rounds = 1000;
  double best = 0;
  for (int tried = 0; tried < kTries;) {
    double operations = 0;
    const double seconds = Together(pool, [&](size_t share) {
      const double done = loop(rounds);
      if (share == 0) operations = done * pool.threads();
    });
    if (seconds < kTrySeconds) {
      rounds *= 2;
      continue;
    }
    best = std::max(best, operations / seconds);
    ++tried;
  }
  return best;
}

// Anonymous memory, in large pages where the system has them to give.
class Pages {
 public:
  explicit Pages(size_t bytes) : bytes_(bytes) {
    void* memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    data_ = static_cast<std::byte*>(memory);
    ::madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~Pages() {
    if (data_ != nullptr) ::munmap(data_, bytes_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  std::byte* data() { return data_; }

 private:
  size_t bytes_;
  std::byte* data_ = nullptr;
};

// Several times the last-level cache, within what any machine can spare.
size_t ReadBufferBytes() {
  const long cache = std::max(0L, ::sysconf(_SC_LEVEL3_CACHE_SIZE));
  constexpr size_t kLeast = size_t{256} << 20;
  constexpr size_t kMost = size_t{768} << 20;
  return std::clamp(4 * static_cast<size_t>(cache), kLeast, kMost);
}

double ReadBandwidth(ThreadPool& pool) {
  constexpr size_t kGranule = 256 * 4;  // ReadLoop's steps of up to four streams
  const size_t threads = static_cast<size_t>(pool.threads());
  const size_t share_bytes = ReadBufferBytes() / threads / kGranule * kGranule;
  Pages pages(threads * share_bytes);
  if (pages.data() == nullptr) return 0;
  // Each thread touches its own share first, so that it lies on the thread's node.
  Together(pool, [&](size_t share) {
    std::fill_n(pages.data() + share * share_bytes, share_bytes, std::byte{1});
  });
  std::atomic<uint64_t> sum{0};
  double best = 0;
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (size_t streams : {1, 2, 4}) {
      const double seconds = Together(pool, [&](size_t share) {
        sum += ReadLoop(pages.data() + share * share_bytes, share_bytes, streams);
      });
      best = std::max(best, static_cast<double>(threads * share_bytes) / seconds);
    }
  }
  return sum == 0 ? 0 : best;
}

}  // namespace

CpuLimits MeasureLimits(ThreadPool& pool) {
  const CpuFeatures& features = GetCpuFeatures();
  CpuLimits limits;
  limits.fma_flops_per_s = BestRate(pool, features.avx512 ? FmaAvx512Loop : FmaAvx2Loop);
  limits.avx2_int8_ops_per_s = BestRate(pool, Int8Avx2Loop);
  if (features.avx512vnni) limits.vnni_ops_per_s = BestRate(pool, VnniLoop);
  if (features.avx512bf16) limits.avx512_bf16_ops_per_s = BestRate(pool, Bf16Avx512Loop);
  if (features.amxint8) limits.amx_int8_ops_per_s = BestRate(pool, AmxInt8Loop);
  if (features.amxbf16) limits.amx_bf16_ops_per_s = BestRate(pool, AmxBf16Loop);
  limits.read_bytes_per_s = ReadBandwidth(pool);
  return limits;
}

}  // namespace flatquant
