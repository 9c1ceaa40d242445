#pragma once

#include <cstdint>
#include <memory>

namespace flatquant::compress {

enum class GemmType { kFloat, kBFloat16 };

// Whether the CPU multiplies bfloat16 (oneDNN asks for AVX-512).
bool GemmTakesBFloat16();

// C [m, n] = A [m, k] B [k, n], row-major, sums in float.
struct GemmShape {
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  // Elements from one row of the stored matrix to the next. A transposed
  // operand is stored as [k, m] (A) or [n, k] (B).
  int64_t a_stride = 0;
  int64_t b_stride = 0;
  int64_t c_stride = 0;
  bool transpose_a = false;
  bool transpose_b = false;
  GemmType operands = GemmType::kFloat;
  GemmType result = GemmType::kFloat;
  bool accumulate = false;  // C += A B; float results only
};

// One prepared matrix product on the calling thread (oneDNN's, whose small
// products run at the same speed as its large ones). Cheap to construct again for
// a shape seen before. An object serves one thread at a time and must be run by
// the thread that made it.
class Gemm {
 public:
  explicit Gemm(const GemmShape& shape);
  ~Gemm();
  Gemm(Gemm&&) noexcept;
  Gemm& operator=(Gemm&&) noexcept;

  // A, B and C must not overlap; any alignment.
  void operator()(const void* a, const void* b, void* c);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The product on all of OpThreads(), its rows split among them.
void ParallelGemm(const GemmShape& shape, const void* a, const void* b, void* c);

}  // namespace flatquant::compress
