#include "flatquant/kernels/embedding/cuda_embedding.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant {
namespace {

// A CTA per row.
__global__ void EmbeddingKernel(CudaEmbeddingArgs args) {
  cuda::LetSuccessorStart();
  cuda::WaitForPredecessor();
  const int64_t words = args.cols / 8;
  const int32_t id = args.ids[blockIdx.x];
  const bool known = id >= 0 && id < args.vocab;
  const uint4* from = static_cast<const uint4*>(args.table) + (known ? id : 0) * words;
  uint4* to = static_cast<uint4*>(args.y) + blockIdx.x * words;
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x)
    to[i] = known ? __ldg(from + i) : uint4{};
}

}  // namespace

void CudaEmbedding(const CudaEmbeddingArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.cols % 8 == 0);
  if (args.rows == 0) return;
  LaunchDependent(EmbeddingKernel, static_cast<unsigned>(args.rows), 256, 0, stream, args);
  CheckCudaLaunch("CudaEmbedding");
}

}  // namespace flatquant
