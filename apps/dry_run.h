#pragma once

#include "apps/console.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/model/config.h"

namespace flatquant {

// 'quantize --dry-run': what the run would take, by counting and a second of measuring.
// Writes nothing but the report. processes: that share the work.
void ReportEstimate(const ModelConfig& config, const QuantizeOptions& options, int lm_head_bits,
                    int processes, const Report& report);

}  // namespace flatquant
