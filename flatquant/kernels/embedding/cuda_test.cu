#include <gtest/gtest.h>

#include "flatquant/kernels/cuda/testing.cuh"
#include "flatquant/kernels/embedding/cuda_embedding.h"

namespace flatquant {
namespace {

TEST(CudaEmbeddingTest, TakesRowsAndZerosUnknownOnes) {
  FLATQUANT_NEEDS_CUDA();
  cuda_testing::ForEachCase(10, [](Rng& rng) {
    const int64_t vocab = cuda_testing::RandomSize(rng, 300);
    const int64_t cols = 8 * cuda_testing::RandomSize(rng, 400);
    const int64_t rows = cuda_testing::RandomSize(rng, 40);
    std::vector<uint16_t> table;
    for (int64_t i = 0; i < vocab * cols; ++i) table.push_back(static_cast<uint16_t>(rng.Next()));
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < rows; ++i) {
      ids.push_back(static_cast<int32_t>(rng.Below(static_cast<uint64_t>(vocab + 2))) - 1);
    }
    const DeviceBuffer<uint16_t> table_device(table);
    const DeviceBuffer<int32_t> ids_device(ids);
    DeviceBuffer<uint16_t> y(static_cast<size_t>(rows * cols));
    y.Fill(0xa5);
    CudaEmbedding({table_device.get(), vocab, ids_device.get(), rows, cols, y.get()}, nullptr);
    const std::vector<uint16_t> out = y.Download();
    for (int64_t i = 0; i < rows * cols; ++i) {
      const int64_t id = ids[static_cast<size_t>(i / cols)];
      const uint16_t expected =
          id < 0 || id >= vocab ? 0 : table[static_cast<size_t>(id * cols + i % cols)];
      ASSERT_EQ(out[static_cast<size_t>(i)], expected);
    }
  });
}

}  // namespace
}  // namespace flatquant
