#include "flatquant/packed/stored_block.h"

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

namespace flatquant {

std::vector<StoredTensor> StoredBlockTensors(StoredModel* stored, size_t block) {
  const std::string prefix = "model.layers." + std::to_string(block) + ".";
  std::vector<StoredTensor> slots = StoredTensors(stored);
  std::erase_if(slots,
                [&prefix](const StoredTensor& slot) { return !slot.name.starts_with(prefix); });
  return slots;
}

Tensor Aligned(const Tensor& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % DTypeSize(tensor.dtype) == 0) return tensor;
  TensorView view = tensor;
  auto memory =
      std::make_shared<const std::vector<std::byte>>(tensor.data, tensor.data + tensor.bytes());
  view.data = memory->data();
  return Tensor::Share(std::move(view), std::move(memory));
}

void FillBlock(const BlockGrid& grid, const ClipTensors& clips, PackedBlock* block) {
  for (Linear linear : kLinears) {
    block->linear(linear).bits = grid.weight_bits[static_cast<size_t>(linear)];
    block->linear(linear).group_size = grid.weight_groups[static_cast<size_t>(linear)];
  }
  for (Site site : kSites) {
    block->site(site).act_bits = grid.sites[static_cast<size_t>(site)].act_bits;
  }
  block->cache.k_bits = grid.cache.k_bits;
  block->cache.v_bits = grid.cache.v_bits;
  FromTensors(clips, block);
}

}  // namespace flatquant
