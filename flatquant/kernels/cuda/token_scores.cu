#include "flatquant/kernels/cuda/token_scores.h"

#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant {
namespace {

constexpr int kThreads = 256;

// The largest logit and its lowest index.
struct Top {
  float logit;
  int index;
};

__device__ Top Larger(Top a, Top b) {
  const bool take_b = b.logit > a.logit || (b.logit == a.logit && b.index < a.index);
  return take_b ? b : a;
}

// A CTA per row: one pass for the maximum, one for the sum, whose order is fixed.
__global__ void __launch_bounds__(kThreads) TokenScoresKernel(CudaTokenScoresArgs args) {
  __shared__ Top tops[kThreads];
  __shared__ float sums[kThreads];
  const int thread = threadIdx.x;
  const int vocab = static_cast<int>(args.vocab);
  const float* logits = args.logits + blockIdx.x * args.vocab;
  Top top = {-INFINITY, 0};
  for (int j = thread; j < vocab; j += kThreads) top = Larger(top, {logits[j], j});
  tops[thread] = top;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) tops[thread] = Larger(tops[thread], tops[thread + half]);
    __syncthreads();
  }
  const float largest = tops[0].logit;
  float sum = 0;
  for (int j = thread; j < vocab; j += kThreads) sum += expf(logits[j] - largest);
  sums[thread] = sum;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (thread < half) sums[thread] += sums[thread + half];
    __syncthreads();
  }
  if (thread != 0) return;
  args.nll[blockIdx.x] = largest - logits[args.targets[blockIdx.x]] + logf(sums[0]);
  args.top[blockIdx.x] = tops[0].index;
}

}  // namespace

void CudaTokenScores(const CudaTokenScoresArgs& args, CudaStream stream) {
  if (args.rows == 0) return;
  TokenScoresKernel<<<static_cast<unsigned>(args.rows), kThreads, 0, stream>>>(args);
  CheckCudaLaunch("CudaTokenScores");
}

}  // namespace flatquant
