#pragma once

#include <string>

namespace flatquant {

// What this CPU and its operating system allow. Detected once.
struct CpuFeatures {
  bool avx2 = false;        // with FMA and F16C
  bool avx512 = false;      // F, BW, DQ, VL
  bool avx512vnni = false;  // with avx512
  bool avx512bf16 = false;  // with avx512
  bool amxbf16 = false;     // with avx512bf16; tile registers enabled for this process
  bool amxint8 = false;     // with avx512vnni; likewise
};

const CpuFeatures& GetCpuFeatures();

// "avx2 avx512 avx512vnni", for reports.
std::string CpuFeatureNames();

}  // namespace flatquant
