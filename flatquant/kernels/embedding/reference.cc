#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/kernels/embedding/embedding.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/row_tasks.h"

namespace flatquant {
namespace {

void Run(const EmbeddingArgs& args, int64_t row_begin, int64_t row_end) noexcept {
  const size_t cols = static_cast<size_t>(args.cols);
  const size_t row_bytes = cols * DTypeSize(args.dtype);
  for (int64_t i = row_begin; i < row_end; ++i) {
    FLATQUANT_CHECK(args.ids[i] >= 0 && args.ids[i] < args.vocab);
    const std::byte* row = args.table + static_cast<size_t>(args.ids[i]) * row_bytes;
    float* y = args.y + static_cast<size_t>(i) * cols;
    if (args.dtype == DType::kF32) {
      std::memcpy(y, row, row_bytes);
    } else if (args.dtype == DType::kBF16) {
      BF16ToFloat(reinterpret_cast<const uint16_t*>(row), y, cols);
    } else {
      FLATQUANT_CHECK(args.dtype == DType::kF16);
      F16ToFloat(reinterpret_cast<const uint16_t*>(row), y, cols);
    }
  }
}

}  // namespace

extern const EmbeddingKernel kEmbeddingReference;
const EmbeddingKernel kEmbeddingReference = {Run};

void Embedding(const EmbeddingArgs& args, ThreadPool& pool) noexcept {
  RunRows(*BestKernel<EmbeddingKernel>().kernel, args, args.rows, args.cols, pool);
}

}  // namespace flatquant
