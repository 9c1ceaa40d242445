#include "flatquant/base/aligned_buffer.h"

#include <sys/mman.h>

#include <cstring>
#include <new>

namespace flatquant {

void* AllocateZeroed(size_t bytes) {
  constexpr size_t kCacheLine = 64;
  constexpr size_t kHugePage = size_t{2} << 20;
  const bool is_large = bytes >= kHugePage;
  void* memory = nullptr;
  if (::posix_memalign(&memory, is_large ? kHugePage : kCacheLine, bytes) != 0) {
    throw std::bad_alloc();
  }
  // Whole huge pages only: one that is partly used would take memory for nothing.
  if (is_large) ::madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
  std::memset(memory, 0, bytes);
  return memory;
}

}  // namespace flatquant
