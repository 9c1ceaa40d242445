#pragma once

#include <string>
#include <string_view>

namespace flatquant {

// Bit widths of a quantized model; each 2..8, or 16 for "not quantized".
struct Scheme {
  int weight_bits = 4;
  int act_bits = 4;
  int k_bits = 4;
  int v_bits = 4;

  // "w4a4kv4", "w4a16" (kv 16), "w8a8", "w4a8k8v4", "w16a16kv2".
  // Errors: scheme.bad (says the grammar).
  static Scheme Parse(std::string_view text);
  std::string Name() const;  // the shortest text that Parse reads back

  friend bool operator==(const Scheme&, const Scheme&) = default;
};

}  // namespace flatquant
