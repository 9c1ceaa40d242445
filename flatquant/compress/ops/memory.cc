#include "flatquant/compress/ops/memory.h"

#include <cstdlib>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace flatquant::compress {

void KeepFreedMemory() {
#if defined(__GLIBC__)
  // The threshold for mapping a block on its own cannot be set above 32 MB, so
  // such blocks are forbidden altogether: everything comes from the heap.
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, -1);  // never give the heap's top back
  mallopt(M_TOP_PAD, 64 << 20);   // bytes; grow in large steps
#endif
}

}  // namespace flatquant::compress
