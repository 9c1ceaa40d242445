#include "flatquant/bench/ceiling.h"

#include <algorithm>
#include <utility>

#include "flatquant/bench/gpu.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/isa.h"
#include "flatquant/kernels/registry.h"

namespace flatquant::bench {

Ceiling IntegerPeak(const Limits& all) {
  if (all.gpu) return {all.gpu->int8_ops_per_s, "INT8 wgmma"};
  const CpuLimits& limits = all.cpu;
  const Isa isa = BestKernel<GemmIntKernel>().isa;
  if (isa >= Isa::kAmxInt8) return {limits.amx_int8_ops_per_s, "AMX-INT8"};
  if (isa >= Isa::kAvx512Vnni) return {limits.vnni_ops_per_s, "VNNI"};
  if (isa >= Isa::kAvx2) return {limits.avx2_int8_ops_per_s, "AVX2-INT8"};
  return {};
}

Ceiling FloatPeak(const Limits& all) {
  if (all.gpu) return {all.gpu->bf16_flops_per_s, "cuBLASLt bf16"};
  const CpuLimits& limits = all.cpu;
  const Isa isa = BestKernel<GemmFloatKernel>().isa;
  if (isa < Isa::kAvx512Bf16) return {limits.fma_flops_per_s, "FMA"};
  // oneDNN takes tiles where there are any.
  if (limits.amx_bf16_ops_per_s > 0 && IsaLimit() >= Isa::kAmxBf16) {
    return {limits.amx_bf16_ops_per_s, "AMX-BF16"};
  }
  return {limits.avx512_bf16_ops_per_s, "AVX512-BF16"};
}

Ceiling ReadBandwidth(const Limits& limits) {
  if (limits.gpu) return {limits.gpu->copy_bytes_per_s, "GPU memory"};
  return {limits.cpu.read_bytes_per_s, "memory"};
}

Limits Larger(const Limits& a, const Limits& b) {
  Limits larger;
  for (double CpuLimits::*field :
       {&CpuLimits::read_bytes_per_s, &CpuLimits::amx_int8_ops_per_s,
        &CpuLimits::amx_bf16_ops_per_s, &CpuLimits::vnni_ops_per_s, &CpuLimits::avx2_int8_ops_per_s,
        &CpuLimits::avx512_bf16_ops_per_s, &CpuLimits::fma_flops_per_s}) {
    larger.cpu.*field = std::max(a.cpu.*field, b.cpu.*field);
  }
  if (a.gpu && b.gpu) {
    larger.gpu.emplace();
    for (double CudaLimits::*field : {&CudaLimits::copy_bytes_per_s, &CudaLimits::int8_ops_per_s,
                                      &CudaLimits::bf16_flops_per_s}) {
      (*larger.gpu).*field = std::max((*a.gpu).*field, (*b.gpu).*field);
    }
  }
  return larger;
}

LimitedResults::LimitedResults(const Engine& engine)
    : LimitedResults([&engine]() -> Limits {
        if (engine.device() == "cpu") return {MeasureLimits(engine.pool()), {}};
        return {{}, MeasureGpuLimits()};
      }) {}

void LimitedResults::Add(Result result, double work_per_second, Ceiling (*of)(const Limits&)) {
  entries_.push_back({std::move(result), work_per_second, of});
}

void LimitedResults::Finish(Run* run) {
  const Limits after = measure_();
  const Limits limits = Larger(before_, after);
  for (Entry& entry : entries_) {
    if (entry.of != nullptr) {
      const Ceiling ceiling = entry.of(limits);
      entry.result.percent_of_limit = ceiling.PercentOf(entry.work_per_second, 1);
      if (entry.result.percent_of_limit >= 0) entry.result.limit = ceiling.name;
    }
    run->results.push_back(std::move(entry.result));
  }
  run->limits.push_back(before_);
  run->limits.push_back(after);
}

std::vector<std::string> KernelsInUse() {
  std::vector<std::string> names;
  const Isa limit = IsaLimit();
  std::string operation;
  // The first of an operation's lines that CPU and limit allow, as the dispatch has it.
  const auto consider = [&](const char* variant, Isa isa) {
    if (operation.empty() || isa > limit || !CpuHas(GetCpuFeatures(), isa)) return;
    names.push_back(operation + " " + variant);
    operation.clear();
  };
#define FLATQUANT_OPERATION(name) operation = #name;
#define FLATQUANT_KERNEL(name, variant, isa) consider(#variant, Isa::isa);
#include "flatquant/kernels/kernels.inc"
  return names;
}

}  // namespace flatquant::bench
