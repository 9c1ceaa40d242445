#pragma once

#include <cstddef>
#include <cstdint>

namespace flatquant {

// Scratch memory of the calling thread for one task of GemmInt: at least `bytes`,
// 64-byte aligned, contents undefined. A function, not a template, so that files
// compiled for wide instruction sets bring no copy of its code into the program.
uint8_t* GemmIntScratch(size_t bytes);

}  // namespace flatquant
