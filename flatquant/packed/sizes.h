#pragma once

#include <cstdint>

#include "flatquant/packed/packed_model.h"

namespace flatquant {

// Bytes of a packed model's tensors (file headers, about 100 bytes a tensor, not
// counted), each counted once.
struct PackedSizes {
  uint64_t linear_bytes = 0;        // quantized linears: codes, scales, biases; and all
                                    // transforms and clips of sites and cache
  uint64_t bf16_linear_bytes = 0;   // the same linears' weights and biases in bf16
  uint64_t float_linear_bytes = 0;  // linears left at 16 bits
  uint64_t other_bytes = 0;         // embedding, norms, lm_head

  uint64_t total() const { return linear_bytes + float_linear_bytes + other_bytes; }

  // The share of their bf16 bytes that the quantized linears take; 0 without any.
  double linear_ratio() const {
    return bf16_linear_bytes == 0
               ? 0.0
               : static_cast<double>(linear_bytes) / static_cast<double>(bf16_linear_bytes);
  }
};

PackedSizes SizesOf(const PackedModel& model);

}  // namespace flatquant
