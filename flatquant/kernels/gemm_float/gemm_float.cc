#include "flatquant/kernels/gemm_float/gemm_float.h"

#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/kernels/gemm_float/gemv.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct TileTag {};
struct ActTag {};

// Below this many tokens a matrix product spends its time on packing, and reading
// the weights once, row by row, is faster.
constexpr int64_t kMatrixTokens = 16;
// A task's share of the output: many tokens, so that widening a weight (some
// instructions) is small beside its use (512 multiplications) ...
constexpr int64_t kTokenSlice = 512;
// ... and as many weight rows as 256 K elements, 1 MB of widened floats, hold.
constexpr int64_t kTileElements = int64_t{1} << 18;

int64_t RowSlice(int64_t cols) {
  return std::clamp<int64_t>(kTileElements / std::max<int64_t>(1, cols) / 32 * 32, 32, 256);
}

// Applies scale and bias of rows [row, row + n) to a part of y.
void Finish(const FloatWeights& weights, int64_t row, int64_t n, int64_t tokens, float* y,
            int64_t y_stride) {
  for (int64_t m = 0; m < tokens; ++m) {
    float* y_row = y + m * y_stride;
    if (weights.scale.size() > 0) {
      for (int64_t r = 0; r < n; ++r) y_row[r] *= weights.scale[static_cast<size_t>(row + r)];
    }
    if (weights.bias.size() > 0) {
      for (int64_t r = 0; r < n; ++r) y_row[r] += weights.bias[static_cast<size_t>(row + r)];
    }
  }
}

template <typename Element>
const Element* WidenTile(const FloatWeights& weights, int64_t row, int64_t n,
                         FloatWeights::Storage as_stored) {
  if (weights.storage == as_stored) return reinterpret_cast<const Element*>(weights.row(row));
  Element* tile = ThreadScratch<TileTag, Element>(static_cast<size_t>(n * weights.cols));
  for (int64_t r = 0; r < n; ++r) {
    WidenRow(weights, row + r, 0, weights.cols, tile + r * weights.cols);
  }
  return tile;
}

}  // namespace

bool MultipliesRight(const GemmFloatKernel& kernel) {
  // Sums of small integers, exact in both types.
  constexpr int64_t kSize = 32;
  std::vector<float> a(kSize * kSize), b(a), c(a);
  for (int64_t i = 0; i < kSize * kSize; ++i) {
    a[static_cast<size_t>(i)] = static_cast<float>(i * 7 % 5 - 2);
    b[static_cast<size_t>(i)] = static_cast<float>(i * 5 % 7 - 3);
  }
  std::vector<uint16_t> a_bf16(a.size()), b_bf16(b.size());
  FloatToBF16(a.data(), a_bf16.data(), a.size());
  FloatToBF16(b.data(), b_bf16.data(), b.size());
  const auto is_right = [&] {
    for (int64_t m = 0; m < kSize; ++m) {
      for (int64_t n = 0; n < kSize; ++n) {
        float sum = 0;
        for (int64_t k = 0; k < kSize; ++k) {
          sum += a[static_cast<size_t>(m * kSize + k)] * b[static_cast<size_t>(n * kSize + k)];
        }
        if (c[static_cast<size_t>(m * kSize + n)] != sum) return false;
      }
    }
    return true;
  };
  kernel.multiply_f32(kSize, kSize, kSize, a.data(), b.data(), c.data(), kSize);
  if (!is_right()) return false;
  std::fill(c.begin(), c.end(), -1.0f);
  kernel.multiply_bf16(kSize, kSize, kSize, a_bf16.data(), b_bf16.data(), c.data(), kSize);
  return is_right();
}

void CheckGemmFloat() {
  static const bool is_right = MultipliesRight(*BestKernel<GemmFloatKernel>().kernel);
  if (is_right) return;
  throw Error("kernels.broken_products",
              "gemm_float " + std::string(BestKernel<GemmFloatKernel>().name),
              "oneDNN does not multiply in this process, where LibTorch may bring another version",
              "link oneDNN before LibTorch, or set FLATQUANT_ISA=reference, which is slow");
}

void GemmFloat(const GemmFloatArgs& args, ThreadPool& pool,
               const GemmFloatKernel* kernel) noexcept {
  const FloatWeights& weights = *args.weights;
  FLATQUANT_CHECK(args.row_begin >= 0 && args.row_end <= weights.rows);
  if (kernel == nullptr) kernel = BestKernel<GemmFloatKernel>().kernel;
  const int64_t cols = weights.cols;
  const int64_t rows = args.row_end - args.row_begin;
  const bool is_bf16 = weights.math == GemmFloatMath::kBF16;

  if (args.tokens < kMatrixTokens) {
    Gemv(args, pool);
    return;
  }
  const uint16_t* x_bf16 = nullptr;
  if (is_bf16) {
    uint16_t* rounded = ThreadScratch<ActTag, uint16_t>(static_cast<size_t>(args.tokens * cols));
    pool.ParallelFor(static_cast<size_t>(args.tokens * cols), 65536, [&](size_t begin, size_t end) {
      FloatToBF16(args.x + begin, rounded + begin, end - begin);
    });
    x_bf16 = rounded;
  }
  const int64_t row_slice = RowSlice(cols);
  const int64_t row_slices = (rows + row_slice - 1) / row_slice;
  const int64_t token_slices = (args.tokens + kTokenSlice - 1) / kTokenSlice;
  pool.ParallelFor(static_cast<size_t>(row_slices * token_slices), 1, [&](size_t task, size_t) {
    const int64_t row = static_cast<int64_t>(task) % row_slices * row_slice;
    const int64_t token = static_cast<int64_t>(task) / row_slices * kTokenSlice;
    const int64_t n = std::min(row_slice, rows - row);
    const int64_t m = std::min(kTokenSlice, args.tokens - token);
    float* y = args.y + token * args.y_stride + row;
    if (is_bf16) {
      const uint16_t* tile =
          WidenTile<uint16_t>(weights, args.row_begin + row, n, FloatWeights::Storage::kBF16);
      kernel->multiply_bf16(m, n, cols, x_bf16 + token * cols, tile, y, args.y_stride);
    } else {
      const float* tile =
          WidenTile<float>(weights, args.row_begin + row, n, FloatWeights::Storage::kF32);
      kernel->multiply_f32(m, n, cols, args.x + token * cols, tile, y, args.y_stride);
    }
    Finish(weights, args.row_begin + row, n, m, y, args.y_stride);
  });
}

}  // namespace flatquant
