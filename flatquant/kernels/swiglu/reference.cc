#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/row_tasks.h"
#include "flatquant/kernels/swiglu/swiglu.h"
#include "flatquant/kernels/vector_exp.h"

namespace flatquant {
namespace {

void Run(const SwigluArgs& args, int64_t row_begin, int64_t row_end) noexcept {
  for (int64_t i = row_begin * args.cols; i < row_end * args.cols; ++i) {
    const float gate = args.gate[i];
    // exp(-g) of a large negative g is infinite, and g / infinity is the 0 that
    // silu has there.
    args.y[i] = gate / (1.0f + VectorExp(-gate)) * args.up[i];
  }
}

}  // namespace

extern const SwigluKernel kSwigluReference;
const SwigluKernel kSwigluReference = {Run};

void Swiglu(const SwigluArgs& args, ThreadPool& pool) noexcept {
  RunRows(*BestKernel<SwigluKernel>().kernel, args, args.rows, args.cols * 4, pool);
}

}  // namespace flatquant
