#include "flatquant/runtime/cuda/cuda_workspace.h"

namespace flatquant {
namespace {

template <typename T>
DeviceBuffer<T> Rows(int64_t rows, int64_t width) {
  return DeviceBuffer<T>(static_cast<size_t>(rows * width));
}

}  // namespace

CudaWorkspace::CudaWorkspace(const CudaModel& model, int64_t max_rows) : rows(max_rows) {
  const ModelConfig& config = model.config;
  int64_t widest = config.hidden;
  int64_t output = 0;
  int64_t clips = 1;
  for (const CudaBlock& block : model.blocks) {
    for (const CudaSite& site : block.sites) {
      widest = std::max(widest, site.width);
      output = std::max(output, site.output);
      clips = std::max(clips, static_cast<int64_t>(site.clips.size()));
    }
  }
  code_stride = RoundUpTo(widest, 64);
  inputs = Rows<int32_t>(rows, CudaRows::kFields);
  stream = Rows<uint16_t>(rows, config.hidden);
  gathered = Rows<uint16_t>(rows, config.hidden);
  site = Rows<uint16_t>(rows, widest);
  codes = Rows<int8_t>(clips * rows, code_stride);
  scales = Rows<float>(clips, rows);
  this->output = Rows<uint16_t>(rows, output);
  q = Rows<uint16_t>(rows, config.q_width());
  mixed = Rows<uint16_t>(rows, config.q_width());
}

}  // namespace flatquant
