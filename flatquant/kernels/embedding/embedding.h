#pragma once

#include <cstddef>
#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/base/thread_pool.h"

namespace flatquant {

// y[i][c] = table[ids[i]][c] as float
struct EmbeddingArgs {
  const std::byte* table = nullptr;  // [vocab, cols] of dtype, any alignment
  DType dtype = DType::kF32;         // F32, F16 or BF16
  int64_t vocab = 0;
  const int32_t* ids = nullptr;  // [rows], each in [0, vocab)
  int64_t rows = 0;
  int64_t cols = 0;
  float* y = nullptr;  // [rows, cols]
};

struct EmbeddingKernel {
  void (*run)(const EmbeddingArgs& args, int64_t row_begin, int64_t row_end) noexcept;
};

void Embedding(const EmbeddingArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
