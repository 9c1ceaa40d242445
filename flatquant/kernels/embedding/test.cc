#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/kernels/embedding/embedding.h"

namespace flatquant {
namespace {

// A table of 3 rows whose element [r][c] is 10 r + c, at an odd address.
template <typename T>
std::vector<std::byte> Table(int64_t cols, T (*convert)(float)) {
  std::vector<std::byte> bytes(1 + static_cast<size_t>(3 * cols) * sizeof(T));
  for (int64_t i = 0; i < 3 * cols; ++i) {
    const T value = convert(static_cast<float>(10 * (i / cols) + i % cols));
    std::memcpy(bytes.data() + 1 + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
  }
  return bytes;
}

void CheckRows(const std::vector<std::byte>& table, DType dtype, int64_t cols) {
  ThreadPool pool(2);
  const int32_t ids[] = {2, 0, 2, 1};
  std::vector<float> y(static_cast<size_t>(4 * cols));
  Embedding({table.data() + 1, dtype, 3, ids, 4, cols, y.data()}, pool);
  for (int64_t i = 0; i < 4; ++i) {
    for (int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(y[static_cast<size_t>(i * cols + c)], static_cast<float>(10 * ids[i] + c));
    }
  }
}

TEST(EmbeddingTest, WidensTheRowsOfItsIds) {
  constexpr int64_t kCols = 7;
  CheckRows(Table<float>(kCols, [](float v) { return v; }), DType::kF32, kCols);
  CheckRows(Table<uint16_t>(kCols, [](float v) { return FloatToBF16(v); }), DType::kBF16, kCols);
  CheckRows(Table<uint16_t>(kCols, [](float v) { return FloatToF16(v); }), DType::kF16, kCols);
}

}  // namespace
}  // namespace flatquant
