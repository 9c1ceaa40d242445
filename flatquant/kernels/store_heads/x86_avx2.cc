#include "flatquant/kernels/store_heads/store_heads_lanes.h"

namespace flatquant {

extern const StoreHeadsKernel kStoreHeadsX86Avx2;
const StoreHeadsKernel kStoreHeadsX86Avx2 = {StoreHeadsRows};

}  // namespace flatquant
