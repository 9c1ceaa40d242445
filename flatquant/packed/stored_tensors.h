#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "flatquant/base/tensor.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/quantization_config.h"

namespace flatquant {

// Clips as the tensors that hold them in a file; undefined at 16 bits.
struct ClipTensors {
  std::array<Tensor, 4> sites;  // F32 [clips, 2], (max, min) each; indexed by Site
  Tensor k;                     // F32 [2]
  Tensor v;
};

// A packed model with every tensor of its files in a slot.
struct StoredModel {
  PackedModel model;
  std::vector<BlockGrid> grids;    // one per block
  std::vector<ClipTensors> clips;  // one per block
};

// One tensor of the files: its name, what it must be, and where it lives.
struct StoredTensor {
  enum class Type {
    kF32,
    kFloat,  // F32, F16 or BF16
    kU8,
    kI8,
    kI32
  };
  enum class Values {
    kAny,  // not looked at: big, and every bit pattern can be computed with
    kFinite,
    kPositive,  // finite, above zero
    kFraction,  // in (0, 1]
    kColumns    // see CheckExtraColumns
  };
  // Whose cost a tensor is, for sizes.h.
  enum class Part { kLinear, kFloatLinear, kOther };

  std::string name;
  Type type = Type::kF32;
  std::vector<int64_t> shape;
  Values values = Values::kAny;
  Part part = Part::kOther;
  Tensor* place = nullptr;  // in the StoredModel
  // kColumns: the site's.
  int64_t site_width = 0;
  int act_bits = 0;
};

// The tensors that the configuration, the grids and model.head's bits ask for, in
// forward order, with pointers into *stored (whose three vectors have a block each).
std::vector<StoredTensor> StoredTensors(StoredModel* stored);

// Throws packed.missing_tensor (undefined), packed.wrong_dtype,
// packed.wrong_shape or packed.bad_value unless the tensor is what `slot` asks
// for. `where`: the directory or model, for errors.
void CheckStoredTensor(const StoredTensor& slot, const Tensor& tensor, const std::string& where);

// Clips between their two forms.
ClipTensors ToTensors(const PackedBlock& block);
void FromTensors(const ClipTensors& clips, PackedBlock* block);

}  // namespace flatquant
