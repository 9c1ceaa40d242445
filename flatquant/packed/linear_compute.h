#pragma once

#include <cstdint>
#include <string>

#include "flatquant/packed/packed_model.h"

namespace flatquant {

// Multiply-adds of a token in the linears of all blocks, by the arithmetic that their
// widths allow. Columns beyond a site's width count: they are multiplied too.
struct LinearCompute {
  uint64_t int4 = 0;     // weights and activation have at most 4 bits
  uint64_t int8 = 0;     // at most 8
  uint64_t other = 0;    // one of the two is not quantized
  uint64_t network = 0;  // what the network has without extra columns

  uint64_t total() const { return int4 + int8 + other; }
  double int4_share() const { return Share(int4); }
  double int8_share() const { return Share(int8); }
  double other_share() const { return Share(other); }
  // total() in multiples of the network's own.
  double growth() const {
    return network == 0 ? 1.0 : static_cast<double>(total()) / static_cast<double>(network);
  }

  // "48.3% INT4, 51.7% INT8, 1.14 times the network's multiply-adds"
  std::string Text() const;

 private:
  double Share(uint64_t part) const {
    return total() == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(total());
  }
};

LinearCompute ComputeOf(const PackedModel& model);

}  // namespace flatquant
