#include "flatquant/kernels/registry.h"

#include <type_traits>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/embedding/embedding.h"
#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/gemm_float/gemv.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/store_heads/store_heads.h"
#include "flatquant/kernels/swiglu/swiglu.h"

namespace flatquant {

#define FLATQUANT_KERNEL(operation, variant, isa) \
  extern const operation##Kernel k##operation##variant;
#include "flatquant/kernels/kernels.inc"

namespace {

template <typename Kernel>
std::vector<KernelEntry<Kernel>> Collect() {
  std::vector<KernelEntry<Kernel>> entries;
#define FLATQUANT_KERNEL(operation, variant, isa_name)                    \
  if constexpr (std::is_same_v<Kernel, operation##Kernel>) {              \
    entries.push_back({#variant, Isa::isa_name, &k##operation##variant}); \
  }
#include "flatquant/kernels/kernels.inc"
  return entries;
}

}  // namespace

template <typename Kernel>
const std::vector<KernelEntry<Kernel>>& KernelsOf() {
  static const std::vector<KernelEntry<Kernel>> entries = Collect<Kernel>();
  return entries;
}

#define FLATQUANT_OPERATION(operation) \
  template const std::vector<KernelEntry<operation##Kernel>>& KernelsOf<operation##Kernel>();
#include "flatquant/kernels/kernels.inc"

}  // namespace flatquant
