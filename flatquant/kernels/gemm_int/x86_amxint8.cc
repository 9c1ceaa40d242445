// Integer GEMM on AMX tiles. Few tokens go to the VNNI kernel, which reads the same
// layout.
#include "flatquant/kernels/gemm_int/tile_gemm.h"

namespace flatquant {

extern const GemmIntKernel kGemmIntX86Avx512Vnni;

namespace {

// A panel's block takes 64 KB as tiles: far less than the L2, and so many columns that
// loading and storing sums between blocks hardly counts.
constexpr int64_t kBlockCols = 2048;
// Up to here VNNI is as fast as widening weights for so few tokens.
constexpr int64_t kVnniTokens = 12;

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  if (m_end - m_begin <= kVnniTokens) {
    kGemmIntX86Avx512Vnni.compute(args, m_begin, m_end, row_begin, row_end);
  } else {
    TileGemm<AmxTiles, kBlockCols>(args, m_begin, m_end, row_begin, row_end).Run();
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86AmxInt8;
const GemmIntKernel kGemmIntX86AmxInt8 = {kVnniPanelRows, VnniPackedBytes, VnniPack, Compute};

}  // namespace flatquant
