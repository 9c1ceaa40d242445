#include "flatquant/kernels/isa.h"

#include <array>
#include <cstdlib>
#include <string>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

struct NamedIsa {
  Isa isa;
  std::string_view name;
};

constexpr std::array<NamedIsa, 7> kNames = {{
    {Isa::kReference, "reference"},
    {Isa::kAvx2, "avx2"},
    {Isa::kAvx512, "avx512"},
    {Isa::kAvx512Vnni, "avx512vnni"},
    {Isa::kAvx512Bf16, "avx512bf16"},
    {Isa::kAmxBf16, "amxbf16"},
    {Isa::kAmxInt8, "amxint8"},
}};

}  // namespace

std::string_view IsaName(Isa isa) noexcept { return kNames[static_cast<size_t>(isa)].name; }

bool CpuHas(const CpuFeatures& features, Isa isa) noexcept {
  switch (isa) {
    case Isa::kReference:
      return true;
    case Isa::kAvx2:
      return features.avx2;
    case Isa::kAvx512:
      return features.avx512;
    case Isa::kAvx512Vnni:
      return features.avx512vnni;
    case Isa::kAvx512Bf16:
      return features.avx512bf16;
    case Isa::kAmxBf16:
      return features.amxbf16;
    case Isa::kAmxInt8:
      return features.amxint8;
  }
  return false;
}

Isa ParseIsaLimit(const char* value, const CpuFeatures& features) {
  if (value == nullptr || *value == '\0') return Isa::kAmxInt8;
  std::string all;
  std::string usable;
  for (const NamedIsa& entry : kNames) {
    all += all.empty() ? "" : ", ";
    all += entry.name;
    if (!CpuHas(features, entry.isa)) continue;
    usable += usable.empty() ? "" : ", ";
    usable += entry.name;
  }
  for (const NamedIsa& entry : kNames) {
    if (entry.name != value) continue;
    if (!CpuHas(features, entry.isa)) {
      throw Error("kernels.isa_unavailable", "FLATQUANT_ISA",
                  "this CPU lacks '" + std::string(value) + "'", "it has " + usable);
    }
    return entry.isa;
  }
  throw Error("kernels.unknown_isa", "FLATQUANT_ISA",
              "'" + std::string(value) + "' is not an instruction set", "use one of " + all);
}

Isa IsaLimit() {
  static const Isa limit = ParseIsaLimit(std::getenv("FLATQUANT_ISA"), GetCpuFeatures());
  return limit;
}

}  // namespace flatquant
