#include "flatquant/kernels/gemm_int/vnni_panels.h"

#include <cstring>

#include "flatquant/kernels/gemm_int/nibble_lanes.h"

namespace flatquant {
namespace {

void PackNibbleRow(const uint8_t* row, int64_t cols, int64_t lane, uint8_t* panel) {
  constexpr int64_t kGroupBytes = 128;
  for (int64_t group = 0; group * kVnniGroupCols < cols; ++group) {
    const uint32_t word = NibbleLane(row, (cols + 1) / 2, group);
    std::memcpy(panel + group * kGroupBytes + lane * 4, &word, 4);
  }
}

void PackByteRow(const uint8_t* row, int64_t cols, int64_t lane, uint8_t* panel) {
  for (int64_t c = 0; c < cols; ++c) {
    panel[c / 4 * 128 + lane * 4 + c % 4] = static_cast<uint8_t>(row[c] ^ 0x80u);
  }
}

}  // namespace

size_t VnniPackedBytes(int bits, int64_t rows, int64_t cols) noexcept {
  return static_cast<size_t>((rows + kVnniPanelRows - 1) / kVnniPanelRows *
                             VnniPanelBytes(bits, cols));
}

void VnniPack(const GemmIntSource& source, int64_t row_begin, int64_t row_end,
              uint8_t* packed) noexcept {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(source.weight);
  const int64_t cols = source.cols;
  for (int64_t row = row_begin; row < row_end; ++row) {
    uint8_t* panel = packed + row / kVnniPanelRows * VnniPanelBytes(source.bits, cols);
    const int64_t lane = row % kVnniPanelRows;
    if (VnniIsNibble(source.bits)) {
      PackNibbleRow(bytes + row * ((cols + 1) / 2), cols, lane, panel);
    } else {
      PackByteRow(bytes + row * cols, cols, lane, panel);
    }
  }
}

}  // namespace flatquant
