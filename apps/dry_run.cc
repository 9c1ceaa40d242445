#include "apps/dry_run.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "flatquant/base/progress.h"
#include "flatquant/compress/estimate.h"

namespace flatquant {

void ReportEstimate(const ModelConfig& config, const QuantizeOptions& options, int lm_head_bits,
                    int processes, const Report& report) {
  const WorkEstimate work = EstimateWork(config, options, lm_head_bits);
  const MachineRates rates = MeasureRates(config, options);
  const TimeEstimate time = EstimateTime(work, rates);
  // The process with the most blocks is the last.
  const int64_t share = (work.blocks + processes - 1) / processes;
  const double calibration = time.calibration_seconds * static_cast<double>(share) /
                             static_cast<double>(std::max<int64_t>(work.blocks, 1));
  const uint64_t in_files =
      options.calib_memory > 0 && work.stream_bytes > options.calib_memory ? work.stream_bytes : 0;
  const uint64_t memory = work.memory_bytes - in_files;
  const uint64_t job_disk = work.job_disk_bytes + in_files;

  report.Line("calibration  {}{}", FormatDuration(calibration),
              processes > 1 ? fmt::format(", {} processes", processes) : "");
  report.Line("packing      {}, at {}/s", FormatDuration(time.packing_seconds),
              FormatBytes(static_cast<uint64_t>(kAssumedDiskRate)));
  report.Line("memory       {} per process, of it {} activations{}", FormatBytes(memory),
              FormatBytes(work.stream_bytes - in_files), in_files > 0 ? " (in files)" : "");
  report.Line("disk         {} for the model, {} for the job until it is done",
              FormatBytes(work.output_disk_bytes), FormatBytes(job_disk));
  report.Line("this machine {:.0f} GFLOP/s in matrix products, {:.1f} in float64, {}/s copied",
              rates.matmul_flops / 1e9, rates.double_flops / 1e9,
              FormatBytes(static_cast<uint64_t>(rates.streamed_bytes)));
  if (!report.wants_json()) return;
  report.WriteJson(nlohmann::ordered_json{
      {"calibration_seconds", calibration},
      {"packing_seconds", time.packing_seconds},
      {"memory_bytes", memory},
      {"job_disk_bytes", job_disk},
      {"output_disk_bytes", work.output_disk_bytes},
      {"matmul_flops", static_cast<double>(work.blocks) * work.block.matmul_flops},
      {"double_flops", static_cast<double>(work.blocks) * work.block.double_flops},
      {"streamed_bytes", static_cast<double>(work.blocks) * work.block.streamed_bytes},
      {"rates",
       {{"matmul_flops", rates.matmul_flops},
        {"double_flops", rates.double_flops},
        {"streamed_bytes", rates.streamed_bytes}}}}
                       .dump());
}

}  // namespace flatquant
