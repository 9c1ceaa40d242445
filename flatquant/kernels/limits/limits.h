#pragma once

#include "flatquant/base/thread_pool.h"

namespace flatquant {

// What this machine can do at best with a pool's threads together: the figures
// that kernels' speeds are given as percentages of.
//
// Arithmetic is measured by loops that touch registers only; an operation is a
// multiplication or an addition, so a multiply-add counts as 2. 0 where the CPU
// lacks the instruction.
struct CpuLimits {
  double read_bytes_per_s = 0;       // of memory, over a buffer that fits in no cache
  double amx_int8_ops_per_s = 0;     // TDPBSSD
  double amx_bf16_ops_per_s = 0;     // TDPBF16PS
  double vnni_ops_per_s = 0;         // VPDPBUSD, 512 bits
  double avx2_int8_ops_per_s = 0;    // VPMADDUBSW and the VPADDW that collects it, 256 bits
  double avx512_bf16_ops_per_s = 0;  // VDPBF16PS, 512 bits
  double fma_flops_per_s = 0;        // float, the widest vectors there are
};

// Best of several short tries of each, together below a second. Call it beside the
// code that is measured, on a machine that is quiet: clocks and neighbours change.
CpuLimits MeasureLimits(ThreadPool& pool);

}  // namespace flatquant
