#include "flatquant/runtime/kv_cache.h"

#include <algorithm>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"

namespace flatquant {

KvCache::KvCache(const LoadedModel& model, int64_t capacity) : capacity_(capacity) {
  for (const LoadedBlock& block : model.blocks) {
    planes_.push_back(MakePlane(model, block.cache.k_bits, capacity));
    planes_.push_back(MakePlane(model, block.cache.v_bits, capacity));
  }
}

KvCache::Plane KvCache::MakePlane(const LoadedModel& model, int bits, int64_t capacity) {
  Plane plane;
  KvPlane& view = plane.view;
  const bool is_float = bits > 8;
  const bool is_bf16 = model.math == GemmFloatMath::kBF16;
  view.format = is_float ? (is_bf16 ? KvFormat::kBF16 : KvFormat::kF32)
                         : (bits <= 4 ? KvFormat::kNibble : KvFormat::kByte);
  view.bits = bits;
  view.heads = model.config.kv_heads;
  view.head_dim = model.config.head_dim;
  view.capacity = capacity;
  const auto vectors =
      CheckedMul(static_cast<uint64_t>(view.heads), static_cast<uint64_t>(capacity));
  const auto bytes =
      vectors ? CheckedMul(*vectors, KvRowBytes(view.format, view.head_dim)) : vectors;
  if (!bytes) {
    throw Error("runtime.capacity", "KV cache",
                std::to_string(capacity) + " positions are more than memory can address",
                "ask for a shorter context");
  }
  plane.data = AlignedBuffer<uint8_t>(*bytes);
  if (!is_float) {
    plane.scale = AlignedBuffer<float>(*vectors);
    plane.zero = AlignedBuffer<uint8_t>(*vectors);
  }
  view.data = plane.data.data();
  view.scale = plane.scale.data();
  view.zero = plane.zero.data();
  return plane;
}

void KvCache::CopyPositions(const SequenceCache& other, int64_t count) {
  const auto& source = static_cast<const KvCache&>(other);
  FLATQUANT_CHECK(planes_.size() == source.planes_.size());
  FLATQUANT_CHECK(count <= capacity_ && count <= source.capacity_);
  const size_t positions = static_cast<size_t>(count);
  for (size_t i = 0; i < planes_.size(); ++i) {
    const KvPlane& to = planes_[i].view;
    const KvPlane& from = source.planes_[i].view;
    const size_t row = KvRowBytes(to.format, to.head_dim);
    for (int64_t head = 0; head < to.heads; ++head) {
      const int64_t to_vector = head * to.capacity;
      const int64_t from_vector = head * from.capacity;
      std::copy_n(from.data + static_cast<size_t>(from_vector) * row, positions * row,
                  to.data + static_cast<size_t>(to_vector) * row);
      if (to.scale == nullptr) continue;  // no integers
      std::copy_n(from.scale + from_vector, positions, to.scale + to_vector);
      std::copy_n(from.zero + from_vector, positions, to.zero + to_vector);
    }
  }
}

uint64_t KvCache::bytes() const {
  uint64_t total = 0;
  for (const Plane& plane : planes_) {
    total += plane.data.size() + plane.scale.size() * sizeof(float) + plane.zero.size();
  }
  return total;
}

}  // namespace flatquant
