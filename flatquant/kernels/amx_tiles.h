#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

// Two tile units with one interface, so that a kernel written as a template over
// the unit runs on AMX and, in the tests, everywhere:
//
//   Zero<t>()              tile t = 0
//   Load<t>(data, stride)  16 rows of 64 bytes, rows `stride` bytes apart
//   Store<t>(data, stride)
//   DotBf16<c, a, b>()     c[m][n] += sum_k a[m][2k] b[k][2n] + a[m][2k+1] b[k][2n+1]
//   DotInt8<c, a, b>()     c[m][n] += sum_{k, j < 4} a[m][4k+j] b[k][4n+j], signed
//   DotInt8Uint8, DotUint8Int8: a signed and b unsigned, and the other way round
//
// a has rows of 32 bfloat16 or 64 int8; b has 16 rows k, each of 16 columns n with
// the 2 or 4 values of the columns side by side; c has 16 x 16 floats or int32.
// All eight tiles always have their full size: operands are padded with zeros when
// they are packed, which costs no instruction, while another shape would need the
// unit to be configured again. Constructing a unit configures it, destroying it
// gives the registers back, so that the thread's context switches stay cheap.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

inline constexpr int64_t kTileHeight = 16;
inline constexpr int64_t kTileBytes = 64;  // of a row
inline constexpr int64_t kTileSize = kTileHeight * kTileBytes;

#if defined(__AMX_TILE__) || defined(__AMXTILE__)  // as GCC and Clang call it

// The unit while the thread has it configured (AmxTiles). Assembly, because the compilers'
// intrinsics want literal tile numbers, which a template's argument is not.
class ConfiguredAmxTiles {
 public:
  template <int kTile>
  void Zero() noexcept {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  void Load(const void* data, int64_t stride) noexcept {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(data), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kTile>
  void Store(void* data, int64_t stride) noexcept {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(data), "r"(stride), "i"(kTile)
                     : "memory");
  }
  template <int kC, int kA, int kB>
  void DotBf16() noexcept {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  void DotInt8() noexcept {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  void DotInt8Uint8() noexcept {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
  template <int kC, int kA, int kB>
  void DotUint8Int8() noexcept {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
};

// Eight tiles of full size.
struct alignas(64) AmxTileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};

  constexpr AmxTileConfig() {
    for (int t = 0; t < 8; ++t) {
      bytes_per_row[t] = kTileBytes;
      rows[t] = kTileHeight;
    }
  }
};
static_assert(sizeof(AmxTileConfig) == 64);

class AmxTiles : public ConfiguredAmxTiles {
 public:
  AmxTiles() noexcept { Configure(); }
  ~AmxTiles() { Release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

  static void Configure() noexcept {
    static constexpr AmxTileConfig kConfig;
    __asm__ volatile("ldtilecfg %0" ::"m"(kConfig));
  }
  static void Release() noexcept { __asm__ volatile("tilerelease"); }
};

#endif  // AMX

// The same in plain C++.
class EmulatedTiles {
 public:
  template <int kTile>
  void Zero() noexcept {
    std::memset(tiles_[kTile], 0, kTileSize);
  }
  template <int kTile>
  void Load(const void* data, int64_t stride) noexcept {
    for (int64_t r = 0; r < kTileHeight; ++r) {
      std::memcpy(tiles_[kTile] + r * kTileBytes, static_cast<const uint8_t*>(data) + r * stride,
                  kTileBytes);
    }
  }
  template <int kTile>
  void Store(void* data, int64_t stride) noexcept {
    for (int64_t r = 0; r < kTileHeight; ++r) {
      std::memcpy(static_cast<uint8_t*>(data) + r * stride, tiles_[kTile] + r * kTileBytes,
                  kTileBytes);
    }
  }
  template <int kC, int kA, int kB>
  void DotBf16() noexcept {
    const auto widen = [](uint16_t bits) {
      return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
    };
    Dot<float, uint16_t, kC, kA, kB>(widen, widen);
  }
  template <int kC, int kA, int kB>
  void DotInt8() noexcept {
    Dot<int32_t, uint8_t, kC, kA, kB>(Signed, Signed);
  }
  template <int kC, int kA, int kB>
  void DotInt8Uint8() noexcept {
    Dot<int32_t, uint8_t, kC, kA, kB>(Signed, Unsigned);
  }
  template <int kC, int kA, int kB>
  void DotUint8Int8() noexcept {
    Dot<int32_t, uint8_t, kC, kA, kB>(Unsigned, Signed);
  }

 private:
  static int32_t Signed(uint8_t value) { return static_cast<int8_t>(value); }
  static int32_t Unsigned(uint8_t value) { return value; }

  template <typename Sum, typename Element, int kC, int kA, int kB, typename WidenA,
            typename WidenB>
  void Dot(const WidenA& widen_a, const WidenB& widen_b) noexcept {
    constexpr int64_t kGroup = sizeof(Sum) / sizeof(Element);  // values side by side in b
    constexpr int64_t kDepth = kTileBytes / static_cast<int64_t>(sizeof(Element));
    constexpr int64_t kCols = kTileBytes / static_cast<int64_t>(sizeof(Sum));
    Sum c[kTileHeight][kCols];
    Element a[kTileHeight][kDepth];
    Element b[kTileHeight][kCols * kGroup];
    std::memcpy(c, tiles_[kC], kTileSize);
    std::memcpy(a, tiles_[kA], kTileSize);
    std::memcpy(b, tiles_[kB], kTileSize);
    for (int64_t m = 0; m < kTileHeight; ++m) {
      for (int64_t k = 0; k < kDepth; ++k) {
        for (int64_t n = 0; n < kCols; ++n) {
          c[m][n] += widen_a(a[m][k]) * widen_b(b[k / kGroup][n * kGroup + k % kGroup]);
        }
      }
    }
    std::memcpy(tiles_[kC], c, kTileSize);
  }

  alignas(64) uint8_t tiles_[8][kTileSize] = {};
};

}  // namespace
}  // namespace flatquant
