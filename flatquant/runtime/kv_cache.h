#pragma once

#include <cstdint>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"
#include "flatquant/runtime/backend.h"
#include "flatquant/runtime/loaded_model.h"

namespace flatquant {

// The K and V of one sequence, layer by layer, packed as each layer's grid says.
// With 16 bits they are float where linears are computed in float, bfloat16 where
// those use bfloat16: the cache is then no worse than its inputs.
class KvCache : public SequenceCache {
 public:
  // Memory for `capacity` positions.
  KvCache(const LoadedModel& model, int64_t capacity);

  int64_t capacity() const override { return capacity_; }
  uint64_t bytes() const override;
  void CopyPositions(const SequenceCache& source, int64_t count) override;

  const KvPlane& k(size_t layer) const { return planes_[2 * layer].view; }
  const KvPlane& v(size_t layer) const { return planes_[2 * layer + 1].view; }

 private:
  struct Plane {
    AlignedBuffer<uint8_t> data;
    AlignedBuffer<float> scale;
    AlignedBuffer<uint8_t> zero;
    KvPlane view;
  };
  static Plane MakePlane(const LoadedModel& model, int bits, int64_t capacity);

  int64_t capacity_ = 0;
  std::vector<Plane> planes_;
};

}  // namespace flatquant
