#include "flatquant/base/aligned_buffer.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>

namespace flatquant {
namespace {

constexpr size_t kCacheLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = 4096;

size_t WholePages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

// Straight from the system, which zeroes a page when it is first written to: by the
// thread that does, so that many threads fill a large buffer at their common speed.
void* MapZeroed(size_t bytes) {
  if (bytes > std::numeric_limits<size_t>::max() - 2 * kHugePage) throw std::bad_alloc();
  const size_t size = WholePages(bytes);
  const size_t room = size + kHugePage;  // for a start on a huge page
  void* memory = ::mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  auto* base = static_cast<std::byte*>(memory);
  const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(base) % kHugePage) % kHugePage;
  if (before > 0) ::munmap(base, before);
  ::munmap(base + before + size, room - before - size);
  // Whole huge pages only: one that is partly used would take memory for nothing.
  ::madvise(base + before, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  return base + before;
}

}  // namespace

void* AllocateZeroed(size_t bytes) {
  if (bytes >= kHugePage) return MapZeroed(bytes);
  void* memory = nullptr;
  if (::posix_memalign(&memory, kCacheLine, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0, bytes);
  return memory;
}

void FreeZeroed(void* memory, size_t bytes) {
  if (bytes >= kHugePage) {
    ::munmap(memory, WholePages(bytes));
  } else {
    std::free(memory);
  }
}

}  // namespace flatquant
