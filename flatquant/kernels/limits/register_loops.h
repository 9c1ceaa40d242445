#pragma once

#include <cstddef>
#include <cstdint>

namespace flatquant {

// Loops that keep one kind of arithmetic unit busy: `rounds` rounds of independent
// chains, on registers only and on numbers other than zero (zeros draw less power,
// so clocks would be higher than real work sees). They return the number of
// operations done, two per multiply-add.
double FmaAvx2Loop(int64_t rounds);
double Int8Avx2Loop(int64_t rounds);
double FmaAvx512Loop(int64_t rounds);
double VnniLoop(int64_t rounds);
double Bf16Avx512Loop(int64_t rounds);
double AmxInt8Loop(int64_t rounds);
double AmxBf16Loop(int64_t rounds);

// Reads bytes [0, bytes) once, as `streams` sequential streams side by side; bytes is
// a multiple of 256 * streams. Returns a sum, so that nothing is left out.
uint64_t ReadLoop(const std::byte* from, size_t bytes, size_t streams);

// Chains of each loop: enough for the latency (4 to 5 cycles) times the issue width
// (2 to 3) of every core so far, within 16 registers for AVX2 and 32 for AVX-512.
inline constexpr int kChains256 = 12;
inline constexpr int kChains512 = 16;

}  // namespace flatquant
