#pragma once

#include <memory>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/gemm_float/float_weights.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/runtime/backend.h"

namespace flatquant {

// Loads a model for this machine's processors. math: how float linears multiply.
// pool: outlives the backend.
std::unique_ptr<Backend> MakeCpuBackend(PackedModel model, GemmFloatMath math, ThreadPool& pool);

}  // namespace flatquant
