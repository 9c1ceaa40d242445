#include "flatquant/kernels/kron_quantize/tile_operands.h"

#include <algorithm>

#include "flatquant/base/half.h"

namespace flatquant {
namespace {

constexpr int64_t RoundUp(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Tiles of a square matrix; element(k, n) is summand k of row or column n. at(p, n, j)
// is the place in a tile of the pair p's member j of n.
template <typename Element, typename Place>
AlignedBuffer<uint16_t> PackTiles(int64_t size, const Element& element, const Place& at) {
  const int64_t k_tiles = (size + 31) / 32;
  const int64_t n_tiles = (size + 15) / 16;
  const int64_t words = n_tiles * k_tiles * kTileWords;
  AlignedBuffer<uint16_t> tiles(static_cast<size_t>(2 * words));
  for (int64_t n = 0; n < size; ++n) {
    for (int64_t k = 0; k < size; ++k) {
      const int64_t tile = n / 16 * k_tiles + k / 32;
      uint16_t* word = tiles.data() + tile * kTileWords + at(k % 16, n % 16, k % 32 / 16);
      const float value = element(k, n);
      word[0] = FloatToBF16(value);
      word[words] = FloatToBF16(value - BF16ToFloat(word[0]));
    }
  }
  return tiles;
}

}  // namespace

void PackTileOperands(KronTransform& transform) {
  const AlignedBuffer<float>& left = transform.left;
  const AlignedBuffer<float>& right = transform.right;
  if (left.size() > 0) {
    const int64_t size = transform.left_size;
    transform.left_tiles = PackTiles(
        size, [&](int64_t k, int64_t n) { return left[static_cast<size_t>(k * size + n)]; },
        [](int64_t p, int64_t n, int64_t j) { return n * 32 + 2 * p + j; });
  }
  if (right.size() > 0) {
    const int64_t stride = transform.right_stride;
    transform.right_tiles = PackTiles(
        transform.right_size,
        [&](int64_t k, int64_t n) { return right[static_cast<size_t>(k * stride + n)]; },
        [](int64_t p, int64_t n, int64_t j) { return p * 32 + 2 * n + j; });
  }
}

int64_t TileOperandElements(const KronTransform& transform, int64_t tokens) {
  if (!transform.kernel->reads_tiles) return 0;
  // X [tokens * L, R], then half of one token, [L, R], whose rows are summands; or two
  // steps of either (tile_transform.h).
  const int64_t first =
      RoundUp(tokens * transform.left_size, 16) * RoundUp(transform.right_size, 32);
  const int64_t second = RoundUp(transform.left_size, 32) * RoundUp(transform.right_size, 16);
  const int64_t steps = 2 * 32 * RoundUp(std::max(transform.left_size, transform.right_size), 32);
  return std::max({first, second, steps});
}

}  // namespace flatquant
