#include "apps/inspect_cpu.h"

#include <fmt/format.h>

#include <string_view>

#include "flatquant/base/cpu_features.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/isa.h"

namespace flatquant {
namespace {

struct Kernel {
  std::string_view variant;
  Isa isa;
};

struct Operation {
  std::string_view name;
  std::vector<Kernel> kernels;  // best first
};

// The lines of kernels.inc, as text.
std::vector<Operation> Operations() {
  std::vector<Operation> operations;
#define FLATQUANT_OPERATION(operation) operations.push_back({#operation, {}});
#define FLATQUANT_KERNEL(operation, variant, isa) \
  operations.back().kernels.push_back({#variant, Isa::isa});
#include "flatquant/kernels/kernels.inc"
  return operations;
}

// What the dispatch chooses: the first that CPU and limit allow.
const Kernel& Chosen(const Operation& operation, Isa limit) {
  for (const Kernel& kernel : operation.kernels) {
    if (kernel.isa <= limit && CpuHas(GetCpuFeatures(), kernel.isa)) return kernel;
  }
  return operation.kernels.back();
}

}  // namespace

nlohmann::ordered_json CpuJson() {
  const Isa limit = IsaLimit();
  nlohmann::ordered_json kernels = nlohmann::ordered_json::object();
  for (const Operation& operation : Operations()) {
    kernels[std::string(operation.name)] = Chosen(operation, limit).variant;
  }
  return {{"features", CpuFeatureNames()},
          {"cores", UsableCores()},
          {"isa_limit", IsaName(limit)},
          {"kernels", std::move(kernels)}};
}

std::vector<std::string> CpuLines() {
  const Isa limit = IsaLimit();
  std::vector<std::string> lines = {
      fmt::format("cpu      {}, {} usable cores", CpuFeatureNames(), UsableCores()),
      "kernels  (* is used here; FLATQUANT_ISA sets a limit)"};
  for (const Operation& operation : Operations()) {
    const Kernel& chosen = Chosen(operation, limit);
    std::string line = fmt::format("  {:<14}", operation.name);
    for (const Kernel& kernel : operation.kernels) {
      line += fmt::format(" {}{}", &kernel == &chosen ? "*" : "", kernel.variant);
    }
    lines.push_back(std::move(line));
  }
  return lines;
}

}  // namespace flatquant
