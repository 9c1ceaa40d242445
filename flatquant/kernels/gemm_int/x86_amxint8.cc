// Integer GEMM on AMX tiles. Few tokens go to the VNNI kernel, which reads the same
// layout.
#include "flatquant/kernels/gemm_int/tile_gemm.h"

namespace flatquant {

extern const GemmIntKernel kGemmIntX86Avx512Vnni;

namespace {

using Blocking = TileBlocking<2, 1, 1024, true>;

// Up to here VNNI keeps up with memory.
constexpr int64_t kVnniTokens = 8;

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  if (m_end - m_begin <= kVnniTokens) {
    kGemmIntX86Avx512Vnni.compute(args, m_begin, m_end, row_begin, row_end);
  } else {
    TileGemm<AmxTiles, Blocking>(args, m_begin, m_end, row_begin, row_end).Run();
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86AmxInt8;
const GemmIntKernel kGemmIntX86AmxInt8 = {kVnniPanelRows, VnniPackedBytes, VnniPack, Compute};

}  // namespace flatquant
