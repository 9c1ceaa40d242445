#include "flatquant/packed/sizes.h"

#include "flatquant/packed/stored_tensors.h"

namespace flatquant {

PackedSizes SizesOf(const PackedModel& model) {
  StoredModel stored;
  stored.model = model;
  for (const PackedBlock& block : model.blocks) {
    stored.grids.push_back(GridOf(block));
    stored.clips.push_back(ToTensors(block));
  }
  PackedSizes sizes;
  for (const StoredTensor& slot : StoredTensors(&stored)) {
    const uint64_t bytes = slot.place->bytes();
    switch (slot.part) {
      case StoredTensor::Part::kLinear:
        sizes.linear_bytes += bytes;
        break;
      case StoredTensor::Part::kFloatLinear:
        sizes.float_linear_bytes += bytes;
        break;
      case StoredTensor::Part::kOther:
        sizes.other_bytes += bytes;
        break;
    }
  }
  constexpr uint64_t kBF16Bytes = 2;
  for (const PackedBlock& block : model.blocks) {
    for (Linear which : kLinears) {
      if (block.linear(which).bits == 16) continue;
      const LinearShape shape = ShapeOf(model.config, which);
      const auto rows = static_cast<uint64_t>(shape.rows);
      const uint64_t bias = HasBias(model.config, which) ? rows : 0;
      sizes.bf16_linear_bytes += kBF16Bytes * (rows * static_cast<uint64_t>(shape.cols) + bias);
    }
  }
  return sizes;
}

}  // namespace flatquant
