#pragma once

#include <vector>

#include "flatquant/packed/stored_tensors.h"

// Single blocks of a StoredModel.
namespace flatquant {

// The tensors of one block, in StoredTensors' order.
std::vector<StoredTensor> StoredBlockTensors(StoredModel* stored, size_t block);

// The tensor at an address that suits its elements: a copy where it lies elsewhere.
// Files that our writer made have only such.
Tensor Aligned(const Tensor& tensor);

// Gives a block, whose tensors are in place, the rest of what its files say: bits and
// clips.
void FillBlock(const BlockGrid& grid, const ClipTensors& clips, PackedBlock* block);

}  // namespace flatquant
