#include "flatquant/runtime/cuda/cuda_cache.h"

#include <algorithm>
#include <string>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// A larger buffer with the same contents in front.
template <typename T>
void Enlarge(DeviceBuffer<T>& buffer, size_t size) {
  DeviceBuffer<T> larger(size);
  larger.Fill(0);  // kernels read whole blocks, positions that are not written yet too
  if (buffer.size() > 0) {
    FLATQUANT_CUDA(
        cudaMemcpy(larger.get(), buffer.get(), buffer.bytes(), cudaMemcpyDeviceToDevice));
  }
  buffer = std::move(larger);
}

}  // namespace

CudaSlotPool::CudaSlotPool(const CudaModel& model, int64_t capacity) : capacity_(capacity) {
  FLATQUANT_CHECK(capacity > 0 && capacity % 32 == 0);
  for (const CudaBlock& block : model.blocks) {
    for (int bits : {block.k_bits, block.v_bits}) {
      Plane& plane = planes_.emplace_back();
      plane.view.bits = bits;
      plane.view.heads = model.config.kv_heads;
      plane.view.head_dim = model.config.head_dim;
      plane.view.capacity = capacity;
    }
  }
}

uint64_t CudaSlotPool::slot_bytes() const {
  uint64_t total = 0;
  for (const Plane& plane : planes_) {
    const CudaKvPlane& view = plane.view;
    const uint64_t vectors = static_cast<uint64_t>(view.heads * capacity_);
    total += vectors * static_cast<uint64_t>(view.VectorBytes());
    if (view.packed()) total += vectors * (sizeof(uint16_t) + 1);  // scale, zero
  }
  return total;
}

void CudaSlotPool::Grow(int64_t slots) {
  FLATQUANT_CUDA(cudaDeviceSynchronize());  // passes that read the planes are over
  for (Plane& plane : planes_) {
    CudaKvPlane& view = plane.view;
    const auto vectors =
        CheckedMul(static_cast<uint64_t>(slots * view.heads), static_cast<uint64_t>(capacity_));
    if (!vectors) {
      throw Error("runtime.capacity", "KV cache",
                  std::to_string(capacity_) + " positions are more than memory can address",
                  "ask for a shorter context");
    }
    Enlarge(plane.data, *vectors * static_cast<uint64_t>(view.VectorBytes()));
    view.data = plane.data.get();
    if (!view.packed()) continue;
    Enlarge(plane.scale, *vectors);
    Enlarge(plane.zero, *vectors);
    view.scale = plane.scale.get();
    view.zero = plane.zero.get();
  }
  for (int64_t slot = slots_; slot < slots; ++slot) free_.push_back(static_cast<int32_t>(slot));
  slots_ = slots;
  ++generation_;
}

int32_t CudaSlotPool::Take() {
  if (free_.empty()) Grow(std::max<int64_t>(1, 2 * slots_));
  const auto lowest = std::min_element(free_.begin(), free_.end());
  const int32_t slot = *lowest;
  free_.erase(lowest);
  return slot;
}

void CudaSlotPool::CopyPositions(const CudaSlotPool& source, int32_t from, int32_t to,
                                 int64_t count) {
  FLATQUANT_CHECK(planes_.size() == source.planes_.size());
  FLATQUANT_CHECK(count <= capacity_ && count <= source.capacity_);
  // The heads of a slot, capacity vectors apart, as the rows of a pitched copy.
  const auto copy = [&](auto* target, int64_t target_capacity, const auto* origin,
                        int64_t origin_capacity, int64_t heads, int64_t elements) {
    const size_t size = sizeof(*target) * static_cast<size_t>(elements);
    FLATQUANT_CUDA(cudaMemcpy2D(target + to * heads * target_capacity * elements,
                                size * static_cast<size_t>(target_capacity),
                                origin + from * heads * origin_capacity * elements,
                                size * static_cast<size_t>(origin_capacity),
                                size * static_cast<size_t>(count), static_cast<size_t>(heads),
                                cudaMemcpyDeviceToDevice));
  };
  for (size_t i = 0; i < planes_.size(); ++i) {
    const CudaKvPlane& target = planes_[i].view;
    const CudaKvPlane& origin = source.planes_[i].view;
    copy(target.data, target.capacity, origin.data, origin.capacity, target.heads,
         target.VectorBytes());
    if (!target.packed()) continue;
    copy(target.scale, target.capacity, origin.scale, origin.capacity, target.heads, 1);
    copy(target.zero, target.capacity, origin.zero, origin.capacity, target.heads, 1);
  }
}

}  // namespace flatquant
