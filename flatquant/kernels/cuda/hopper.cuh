#pragma once

// Hopper's asynchronous machinery as functions: barriers in shared memory, the copy
// engine (TMA), clusters, wgmma's fences. Names and operands follow the PTX ISA.
// Only for files that are compiled for sm_90a.

#include <cuda.h>

#include <cstdint>

#include "flatquant/kernels/cuda/tensor_core.cuh"

namespace flatquant::cuda {

// --- mbarrier ---------------------------------------------------------------

__device__ inline void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine and to the cluster.
__device__ inline void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void BarrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Barriers order accesses within their CTA (the default scope). A wider one would cost a
// memory fence for each arrival and the L1 cache for each wait; across the cluster they
// only pass on that the copy engine may write, or has written, which needs neither.
__device__ inline void BarrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives at the barrier at the same offset in CTA `rank` of the cluster.
__device__ inline void BarrierArriveRemote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}

__device__ inline void BarrierWait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// --- copies -----------------------------------------------------------------

// Plain bytes, a multiple of 16, 16-byte aligned on both sides.
__device__ inline void BulkLoad(uint32_t shared, const void* global, uint32_t bytes,
                                uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared),
      "l"(global), "r"(bytes), "r"(barrier)
      : "memory");
}

// The same bytes into L2 only.
__device__ inline void BulkPrefetch(const void* global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

// A box of a two-dimensional tensor at (x, y), x the contiguous coordinate.
__device__ inline void TensorLoad(uint32_t shared, const CUtensorMap* map, int x, int y,
                                  uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}

// The same into every CTA of the cluster named by the mask, at the same offset, each
// CTA's own barrier counting the bytes.
__device__ inline void TensorLoadMulticast(uint32_t shared, const CUtensorMap* map, int x, int y,
                                           uint32_t barrier, uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes."
      "multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(mask)
      : "memory");
}

__device__ inline void TensorStore(const CUtensorMap* map, uint32_t shared, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
      "r"(shared), "r"(x), "r"(y)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// The box at the origin of the inner dimensions and at `i` of the outermost.
__device__ inline void TensorLoad4(uint32_t shared, const CUtensorMap* map, int i,
                                   uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %2, %2, %3}], [%4];" ::"r"(shared),
      "l"(map), "r"(0), "r"(i), "r"(barrier)
      : "memory");
}
__device__ inline void TensorStore3(const CUtensorMap* map, uint32_t shared, int i) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %2, %3}], [%1];" ::"l"(map),
      "r"(shared), "r"(0), "r"(i)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Until this thread's stores have read their shared memory.
__device__ inline void TensorStoreWaitRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

// Orders ordinary writes to shared memory before what the copy engine and the tensor
// cores read; every writing thread calls it, before a barrier.
__device__ inline void FenceAsyncProxy() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// --- clusters, warpgroups ---------------------------------------------------

__device__ inline uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

__device__ inline void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Orders what the CTAs of a cluster have written to shared memory, and nothing else: ClusterSync
// becomes a fence over the whole GPU, which waits for all of a thread's global accesses.
__device__ inline void ClusterSyncShared() {
  asm volatile(
      "fence.release.sync_restrict::shared::cta.cluster;\n"
      "barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;\n"
      "fence.acquire.sync_restrict::shared::cluster.cluster;" ::
          : "memory");
}

// Where CTAs only wait for each other's loads to have returned: orders no writes.
__device__ inline void ClusterSyncAfterLoads() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::
                   : "memory");
}

// A barrier among `threads` threads; id 1..15 (0 is __syncthreads).
__device__ inline void NamedBarrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <int kRegisters>
__device__ inline void RaiseRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ inline void LowerRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// --- wgmma ------------------------------------------------------------------

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across a wait.
template <typename T>
__device__ inline void WgmmaPin(T& x) {
  if constexpr (sizeof(T) == 4 && T(0.5) == T(0)) {
    asm volatile("" : "+r"(x)::"memory");
  } else {
    asm volatile("" : "+f"(x)::"memory");
  }
}

// Descriptor of an operand whose rows are 128 bytes along K, stored with the 128-byte
// swizzle: 16-byte chunk c of row i stands at chunk c ^ (i % 8), groups of eight rows
// lie 1024 bytes apart. `shared` is 1024-byte aligned but for an advance along K
// within the 128 bytes.
__device__ inline uint64_t SwizzledOperand(uint32_t shared) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  constexpr uint64_t kLeadingUnused = uint64_t{1} << 16;
  return kSwizzle128 | kStride | kLeadingUnused | ((shared & 0x3ffff) >> 4);
}

// The same for an operand B [k, n] whose rows of 64 elements along n are those 128 bytes
// (wgmma's transposed form): eight rows lie in 1024 bytes, the next 64 elements of the same
// rows `panel` bytes further.
__device__ inline uint64_t TransposedOperand(uint32_t shared, uint32_t panel) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  constexpr uint64_t kStride = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kStride | uint64_t{panel >> 4} << 16 | ((shared & 0x3ffff) >> 4);
}

}  // namespace flatquant::cuda
