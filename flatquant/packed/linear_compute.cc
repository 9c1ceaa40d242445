#include "flatquant/packed/linear_compute.h"

#include <algorithm>
#include <cstdio>

#include "flatquant/packed/flattening.h"

namespace flatquant {

std::string LinearCompute::Text() const {
  std::string text;
  const auto add = [&](const char* format, double value) {
    char part[64];
    std::snprintf(part, sizeof(part), format, value);
    text += (text.empty() ? "" : ", ") + std::string(part);
  };
  if (int4 > 0) add("%.1f%% INT4", 100 * int4_share());
  if (int8 > 0) add("%.1f%% INT8", 100 * int8_share());
  if (other > 0) add("%.1f%% floating point", 100 * other_share());
  if (total() != network) add("%.2f times the network's multiply-adds", growth());
  return text;
}

LinearCompute ComputeOf(const PackedModel& model) {
  LinearCompute compute;
  for (const PackedBlock& block : model.blocks) {
    for (const Linear which : kLinears) {
      const LinearShape stored = StoredShape(model.config, block, which);
      const LinearShape own = ShapeOf(model.config, which);
      const int bits = std::max(block.linear(which).bits, block.site(SiteOf(which)).act_bits);
      uint64_t& part = bits <= 4 ? compute.int4 : bits <= 8 ? compute.int8 : compute.other;
      part += static_cast<uint64_t>(stored.rows) * static_cast<uint64_t>(stored.cols);
      compute.network += static_cast<uint64_t>(own.rows) * static_cast<uint64_t>(own.cols);
    }
  }
  return compute;
}

}  // namespace flatquant
