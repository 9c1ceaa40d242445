#pragma once

#include <memory>
#include <string>

#include "flatquant/base/dtype.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/runtime/backend.h"

namespace flatquant {

// Loads a model onto a GPU, "cuda" or "cuda:1". dtype: of activations, kF16 or kBF16.
// pool: converts weights while the model loads. Errors: cuda.not_built, cuda.no_device,
// cuda.unsupported, cuda.failed, cuda.no_cublas.
std::unique_ptr<Backend> MakeCudaBackend(PackedModel model, const std::string& device, DType dtype,
                                         ThreadPool& pool);

}  // namespace flatquant
