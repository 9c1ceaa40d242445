#pragma once

#include <cstdint>

#include "flatquant/compress/ops/fake_quant_rows.h"

// The rows of fake_quant.h on a GPU, free of LibTorch: FakeQuantFunction's loops over rows,
// each as one kernel instead of some thirty of LibTorch's.
namespace flatquant::compress {

// What fake-quantized values and their gradients are held in.
enum class RowElement { kFloat, kBFloat16, kHalf };

struct FakeQuantRows {
  GridKind kind = GridKind::kActivation;
  int bits = 4;
  int64_t rows = 0;
  int64_t n = 0;             // columns
  const float* x = nullptr;  // [rows, n]
  // What each row's maximum and minimum are multiplied by: one factor for all rows
  // (step 0) or one per row (step 1).
  const float* max_factor = nullptr;
  const float* min_factor = nullptr;
  int64_t max_step = 0;
  int64_t min_step = 0;
  Range* ranges = nullptr;                  // [rows], of x; written by the forward pass
  RowElement element = RowElement::kFloat;  // of y and its gradient; kHalf on a GPU only
};

// Whether this build has the kernels.
bool HasGpuFakeQuant();

// y: [rows, n]. Pointers are the device's; the kernel is queued on LibTorch's current
// stream of that device.
void GpuFakeQuant(const FakeQuantRows& rows, int device, void* y);

// dx: [rows, n]; dmax, dmin: [rows], gradients of the factors as each row gives them.
void GpuFakeQuantBackward(const FakeQuantRows& rows, int device, const void* dy, float* dx,
                          float* dmax, float* dmin);

}  // namespace flatquant::compress
