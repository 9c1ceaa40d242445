#pragma once

#include <algorithm>
#include <cstdint>

#include "flatquant/kernels/cuda/device_buffer.cuh"
#include "flatquant/runtime/cuda/cuda_model.h"

namespace flatquant {

// What a row of a pass is: a token, where it stands, and in whose slot. One block of
// memory, so that one copy brings a pass's rows to the GPU: ids [rows], positions
// [rows], slots [rows], lengths [rows] (a row's position + 1).
struct CudaRows {
  static constexpr int64_t kFields = 4;
  const int32_t* data = nullptr;
  int64_t rows = 0;

  const int32_t* ids() const { return data; }
  const int32_t* positions() const { return data + rows; }
  const int32_t* slots() const { return data + 2 * rows; }
  const int32_t* lengths() const { return data + 3 * rows; }
};

// Memory of a pass over at most `rows` rows.
struct CudaWorkspace {
  CudaWorkspace(const CudaModel& model, int64_t rows);

  int64_t rows;
  int64_t code_stride = 0;          // bytes between tokens' codes
  DeviceBuffer<int32_t> inputs;     // CudaRows
  DeviceBuffer<uint16_t> stream;    // [rows, hidden], the residual stream
  DeviceBuffer<uint16_t> gathered;  // [rows, hidden]: rows whose logits are wanted
  DeviceBuffer<uint16_t> site;      // [rows, widest site]: a site's floats
  DeviceBuffer<int8_t> codes;       // [clips, rows, code_stride]
  DeviceBuffer<float> scales;       // [clips, rows]
  DeviceBuffer<uint16_t> output;    // [rows, widest output]: q, k, v or gate, up
  DeviceBuffer<uint16_t> q;         // [rows, q_width]
  DeviceBuffer<uint16_t> mixed;     // [rows, q_width], attention's output
  DeviceBuffer<uint8_t> attention;  // its workspace (CudaAttentionBytes)
};

}  // namespace flatquant
