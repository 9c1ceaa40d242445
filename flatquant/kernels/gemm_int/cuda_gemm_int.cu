#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

namespace flatquant {
namespace {

// Which kernel on sm_90. Microseconds on an H200 for a decode step's 128 linears (hidden size
// 4096) with short kernels between them:
//
//   tokens   GemmIntMma   GemmIntFlow   GemmIntSplit
//        1         1901          1618           1699
//        8         2292          1733           1748
//       16         2414             -           1806
//
// More are bound by their products: GemmIntSplit where GemmIntWgmma's tiles of 256 x 256 would
// leave most multiprocessors without work.
void RunHopper(const CudaGemmIntArgs& args, CudaStream stream) {
  const int64_t tiles = CeilDiv(args.weights.rows, 256) * CeilDiv(args.tokens, 256);
  if (args.tokens <= 8) {
    (cuda::GemmIntFlowTakes(args) ? cuda::GemmIntFlow : cuda::GemmIntMma)(args, stream);
  } else if (args.tokens <= 128 || (args.tokens <= 256 && tiles < 32)) {
    cuda::GemmIntSplit(args, stream);
  } else {
    cuda::GemmIntWgmma(args, stream);
  }
}

__device__ uint32_t Nibble(const uint8_t* canonical, int64_t rows, int64_t cols, int64_t row,
                           int64_t col) {
  if (row >= rows || col >= cols) return 0;
  return canonical[row * ((cols + 1) / 2) + col / 2] >> (col % 2 * 4) & 15u;
}

// A thread per packed word.
__global__ void PackKernel(const uint8_t* canonical, int64_t rows, int64_t cols, int64_t words,
                           uint32_t* packed) {
  const int64_t index = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  if (index >= words) return;
  const int64_t tile = index / (cuda::kGemmIntTileBytes / 4);
  const int64_t chunks = CudaGemmIntPaddedCols(cols) / 128;
  const int in_tile = static_cast<int>(index % (cuda::kGemmIntTileBytes / 4));
  const int block = in_tile / 256;
  const int lane = in_tile % 128 / 4;
  const int word = in_tile % 256 / 128 * 4 + in_tile % 4;
  const int64_t row = tile / chunks * 128 + block * 16 + lane / 4;
  const int64_t col = tile % chunks * 128 + word / 2 * 32 + word % 2 * 16 + lane % 4 * 4;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    out |= (Nibble(canonical, rows, cols, row, col + i) |
            Nibble(canonical, rows, cols, row + 8, col + i) << 4)
           << (8 * i);
  }
  packed[index] = out;
}

}  // namespace

void CudaPackGemmInt(const uint8_t* canonical, int64_t rows, int64_t cols, uint8_t* packed,
                     CudaStream stream) {
  const int64_t words = CudaGemmIntPackedBytes(rows, cols) / 4;
  PackKernel<<<static_cast<unsigned>(CeilDiv(words, 256)), 256, 0, stream>>>(
      canonical, rows, cols, words, reinterpret_cast<uint32_t*>(packed));
  CheckCudaLaunch("CudaPackGemmInt");
}

void CudaGemmInt(const CudaGemmIntArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.act_stride >= args.weights.cols && args.act_stride % 64 == 0);
  FLATQUANT_CHECK(args.y_stride >= args.weights.rows && args.y_stride % 8 == 0);
  if (args.tokens == 0) return;
  if (CurrentCudaDevice().sm_version == 90) {
    RunHopper(args, stream);
  } else {
    cuda::GemmIntMma(args, stream);
  }
}

}  // namespace flatquant
