#pragma once

namespace flatquant::compress {

// Makes the C allocator keep freed memory instead of returning it to the
// system. Training allocates and frees the same large temporaries each step;
// when each comes fresh from mmap, the page faults of touching a 45 MB tensor
// cost four times the copy that fills it. Call once, before training. The price
// is that the process's memory stays at its peak. Does nothing where the C
// library has no such switch.
void KeepFreedMemory();

}  // namespace flatquant::compress
