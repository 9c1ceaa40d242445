// Stands in for cuda_backend.cc where CUDA is not built.

#include "flatquant/base/error.h"
#include "flatquant/runtime/cuda/cuda_backend.h"

namespace flatquant {

std::unique_ptr<Backend> MakeCudaBackend(PackedModel, const std::string& device, DType,
                                         ThreadPool&) {
  throw Error("cuda.not_built", "--device " + device, "this binary was built without CUDA",
              "build with -DFLATQUANT_CUDA=ON (needs nvcc), or use --device cpu");
}

}  // namespace flatquant
