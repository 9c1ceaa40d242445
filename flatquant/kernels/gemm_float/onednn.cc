// Matrix products through oneDNN, one call per task on that task's thread.
//
// oneDNN of Debian threads with OpenMP. Its loops would start a second set of
// threads beside the pool's, so each call runs with OpenMP limited to one thread;
// that limit belongs to the calling thread and is put back afterwards, because the
// pool's first worker is the caller's own thread, which may use OpenMP elsewhere.
#include <omp.h>
#include <dnnl.hpp>

#include <map>
#include <tuple>

#include "flatquant/base/half.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/isa.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct WideATag {};
struct WideBTag {};

class SingleOmpThread {
 public:
  SingleOmpThread() : saved_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~SingleOmpThread() { omp_set_num_threads(saved_); }
  SingleOmpThread(const SingleOmpThread&) = delete;
  SingleOmpThread& operator=(const SingleOmpThread&) = delete;

 private:
  int saved_;
};

// FLATQUANT_ISA holds for oneDNN's generated code too. Without effect if something
// else in the process (LibTorch) has used oneDNN before.
void LimitInstructionSet() {
  static const dnnl_status_t status = [] {
    switch (IsaLimit()) {
      case Isa::kReference:
      case Isa::kAvx2:
        return dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
      case Isa::kAvx512:
        return dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core);
      case Isa::kAvx512Vnni:
        return dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_vnni);
      case Isa::kAvx512Bf16:
        return dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx512_core_bf16);
      case Isa::kAmxBf16:  // oneDNN has one level for both
      case Isa::kAmxInt8:
        break;
    }
    return dnnl_success;
  }();
  static_cast<void>(status);
}

void MultiplyF32(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
                 int64_t c_stride) noexcept {
  LimitInstructionSet();
  const SingleOmpThread single;
  dnnl_sgemm('N', 'T', m, n, k, 1.0f, a, k, b, k, 0.0f, c, c_stride);
}

// bfloat16 operands on a CPU without bfloat16 products: the same numbers from
// float ones.
void MultiplyWidened(int64_t m, int64_t n, int64_t k, const uint16_t* a, const uint16_t* b,
                     float* c, int64_t c_stride) noexcept {
  float* wide_a = ThreadScratch<WideATag, float>(static_cast<size_t>(m * k));
  float* wide_b = ThreadScratch<WideBTag, float>(static_cast<size_t>(n * k));
  BF16ToFloat(a, wide_a, static_cast<size_t>(m * k));
  BF16ToFloat(b, wide_b, static_cast<size_t>(n * k));
  MultiplyF32(m, n, k, wide_a, wide_b, c, c_stride);
}

const dnnl::engine& CpuEngine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

struct MatmulBF16 {
  dnnl::memory::desc a, b, c;
  dnnl::matmul matmul;
};

// Primitives are kept per thread: making one costs more than a small product. A
// run meets few shapes (each linear's slices), prompts of many lengths more, so
// the collection is dropped when it grows.
const MatmulBF16& FindMatmul(int64_t m, int64_t n, int64_t k, int64_t c_stride) {
  using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t>;
  constexpr size_t kMaxKept = 256;
  thread_local std::map<Shape, MatmulBF16> kept;
  const Shape shape{m, n, k, c_stride};
  const auto found = kept.find(shape);
  if (found != kept.end()) return found->second;
  if (kept.size() >= kMaxKept) kept.clear();
  using Type = dnnl::memory::data_type;
  MatmulBF16 made;
  made.a = dnnl::memory::desc({m, k}, Type::bf16, dnnl::memory::dims{k, 1});
  made.b = dnnl::memory::desc({k, n}, Type::bf16, dnnl::memory::dims{1, k});
  made.c = dnnl::memory::desc({m, n}, Type::f32, dnnl::memory::dims{c_stride, 1});
  made.matmul = dnnl::matmul(
      dnnl::matmul::primitive_desc(dnnl::matmul::desc(made.a, made.b, made.c), CpuEngine()));
  return kept.emplace(shape, std::move(made)).first->second;
}

void MultiplyBF16(int64_t m, int64_t n, int64_t k, const uint16_t* a, const uint16_t* b, float* c,
                  int64_t c_stride) noexcept {
  LimitInstructionSet();
  const SingleOmpThread single;
  thread_local dnnl::stream stream(CpuEngine());
  const MatmulBF16& found = FindMatmul(m, n, k, c_stride);
  const dnnl::memory a_memory(found.a, CpuEngine(), const_cast<uint16_t*>(a));
  const dnnl::memory b_memory(found.b, CpuEngine(), const_cast<uint16_t*>(b));
  const dnnl::memory c_memory(found.c, CpuEngine(), c);
  found.matmul.execute(
      stream, {{DNNL_ARG_SRC, a_memory}, {DNNL_ARG_WEIGHTS, b_memory}, {DNNL_ARG_DST, c_memory}});
  stream.wait();
}

}  // namespace

extern const GemmFloatKernel kGemmFloatOneDnn;
const GemmFloatKernel kGemmFloatOneDnn = {MultiplyF32, MultiplyWidened};

extern const GemmFloatKernel kGemmFloatOneDnnAvx512Bf16;
const GemmFloatKernel kGemmFloatOneDnnAvx512Bf16 = {MultiplyF32, MultiplyBF16};

}  // namespace flatquant
