// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/store_heads/store_heads_lanes.h"

namespace flatquant {

extern const StoreHeadsKernel kStoreHeadsX86Avx512;
const StoreHeadsKernel kStoreHeadsX86Avx512 = {StoreHeadsRows};

}  // namespace flatquant
