#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "flatquant/base/rng.h"
#include "flatquant/compress/transform.h"

namespace flatquant::compress {

// Whether HadamardMatrix knows order n: products of powers of two with one order of
// Paley's, q + 1 for a prime q = 3 mod 4 or 2 (q + 1) for a prime q = 1 mod 4, or with 52,
// 156 or 172, which Williamson's construction gives. Of the odd multiples of 4 that widths
// of language models contain these are 12, 20, 28, 36, 44, 52, 60, 68, 76, 84, 108, 124,
// 132, 140, 156, 172; not 92, 100, 116.
bool HasHadamard(int64_t n);

// A Hadamard matrix: entries +1 and -1, H H^T = n I. [n, n], float64, CPU.
// HasHadamard(n) must hold.
at::Tensor HadamardMatrix(int64_t n);

// How QuaRot splits a width n >= 1: the nearest factors that both have a Hadamard matrix,
// 11008 -> 64 x 172 (there is none of order 86); KronFactors where there are no such
// factors of at most 256, or none nearer than them.
KronShape HadamardFactors(int64_t n);

// A random rotation [n, n], float64, CPU: H diag(+-1) / sqrt(n) with random signs where
// there is a Hadamard matrix, else a uniform random orthogonal one.
at::Tensor RandomRotation(int64_t n, Rng& rng);

}  // namespace flatquant::compress
