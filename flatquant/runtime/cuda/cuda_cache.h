#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "flatquant/kernels/cuda/device_buffer.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"
#include "flatquant/runtime/backend.h"
#include "flatquant/runtime/cuda/cuda_model.h"

namespace flatquant {

// Memory for sequences of one capacity: a slot each, in planes that they share, so that
// one kernel serves a step of all of them. Slots are added as sequences come, the number
// doubling, and used again.
class CudaSlotPool {
 public:
  // capacity: positions per slot, a multiple of 32. model: outlives the pool.
  CudaSlotPool(const CudaModel& model, int64_t capacity);

  int64_t capacity() const { return capacity_; }
  uint64_t slot_bytes() const;
  // Changes whenever the planes move: what was captured of them is then void.
  uint64_t generation() const { return generation_; }

  const CudaKvPlane& k(size_t layer) const { return planes_[2 * layer].view; }
  const CudaKvPlane& v(size_t layer) const { return planes_[2 * layer + 1].view; }

  int32_t Take();
  void Release(int32_t slot) { free_.push_back(slot); }

  // Takes over the first `count` positions of a slot of this or another pool of the
  // same model.
  void CopyPositions(const CudaSlotPool& source, int32_t from, int32_t to, int64_t count);

 private:
  struct Plane {
    DeviceBuffer<uint8_t> data;
    DeviceBuffer<uint16_t> scale;
    DeviceBuffer<uint8_t> zero;
    CudaKvPlane view;
  };
  void Grow(int64_t slots);

  int64_t capacity_;
  int64_t slots_ = 0;
  uint64_t generation_ = 0;
  std::vector<Plane> planes_;
  std::vector<int32_t> free_;
};

// A slot, given back at the end.
class CudaSequenceCache : public SequenceCache {
 public:
  explicit CudaSequenceCache(std::shared_ptr<CudaSlotPool> pool)
      : pool_(std::move(pool)), slot_(pool_->Take()) {}
  ~CudaSequenceCache() override { pool_->Release(slot_); }
  CudaSequenceCache(const CudaSequenceCache&) = delete;
  CudaSequenceCache& operator=(const CudaSequenceCache&) = delete;

  int64_t capacity() const override { return pool_->capacity(); }
  uint64_t bytes() const override { return pool_->slot_bytes(); }
  void CopyPositions(const SequenceCache& source, int64_t count) override {
    const auto& other = static_cast<const CudaSequenceCache&>(source);
    pool_->CopyPositions(*other.pool_, other.slot_, slot_, count);
  }

  const CudaSlotPool& pool() const { return *pool_; }
  int32_t slot() const { return slot_; }

 private:
  std::shared_ptr<CudaSlotPool> pool_;
  int32_t slot_;
};

}  // namespace flatquant
