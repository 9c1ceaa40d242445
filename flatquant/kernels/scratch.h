#pragma once

#include <cstddef>

#include "flatquant/base/aligned_buffer.h"

namespace flatquant {

// At least n elements of scratch memory that belong to this thread and to the
// use named by Tag (an empty struct of the caller's own), 64-byte aligned,
// contents undefined. It is kept for the next call, because fresh pages cost more
// than most kernels.
template <typename Tag, typename T>
T* ThreadScratch(size_t n) {
  thread_local AlignedBuffer<T> buffer;
  if (buffer.size() < n) buffer = AlignedBuffer<T>(n + n / 4);
  return buffer.data();
}

}  // namespace flatquant
