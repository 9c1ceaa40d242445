#pragma once

#include "flatquant/model/config.h"

namespace flatquant::testing {

// Two blocks of a network with grouped heads in which no two widths are equal and none
// is a power of two: hidden 24, q 60, ffn 44. For the tests of any room.
inline ModelConfig SmallConfig(int64_t max_positions = 4096) {
  ModelConfig config;
  config.hidden = 24;
  config.ffn = 44;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 10;
  config.vocab = 50;
  config.max_positions = max_positions;
  return config;
}

}  // namespace flatquant::testing
