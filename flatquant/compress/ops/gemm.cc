#include "flatquant/compress/ops/gemm.h"

#include <omp.h>

#include <algorithm>
#include <dnnl.hpp>
#include <unordered_map>

#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using dnnl::memory;

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

memory::data_type DataType(GemmType type) {
  return type == GemmType::kFloat ? memory::data_type::f32 : memory::data_type::bf16;
}

memory::desc Matrix(int64_t rows, int64_t columns, int64_t stride, bool transposed, GemmType type) {
  const memory::dims strides =
      transposed ? memory::dims{1, stride} : memory::dims{stride, int64_t{1}};
  return memory::desc({rows, columns}, DataType(type), strides);
}

dnnl::matmul::primitive_desc Describe(const GemmShape& s) {
  const memory::desc a = Matrix(s.m, s.k, s.a_stride, s.transpose_a, s.operands);
  const memory::desc b = Matrix(s.k, s.n, s.b_stride, s.transpose_b, s.operands);
  const memory::desc c = Matrix(s.m, s.n, s.c_stride, false, s.result);
  dnnl::primitive_attr attributes;
  // oneDNN's own scratch memory may not be shared by threads.
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (s.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
#if DNNL_VERSION_MAJOR >= 3
  return dnnl::matmul::primitive_desc(Engine(), a, b, c, attributes);
#else
  return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, Engine());
#endif
}

// oneDNN plans for as many threads as OpenMP would give it at that moment.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

int64_t ElementSize(GemmType type) { return type == GemmType::kFloat ? 4 : 2; }

}  // namespace

bool GemmTakesBFloat16() {
  static const bool takes = [] {
    GemmShape shape;
    shape.m = shape.n = shape.k = shape.a_stride = shape.b_stride = shape.c_stride = 16;
    shape.operands = GemmType::kBFloat16;
    try {
      Describe(shape);
      return true;
    } catch (const dnnl::error&) {
      return false;
    }
  }();
  return takes;
}

struct Gemm::State {
  explicit State(const GemmShape& shape)
      : descriptor(Describe(shape)),
        product(descriptor),
        stream(Engine()),
        a(descriptor.src_desc(), Engine(), nullptr),
        b(descriptor.weights_desc(), Engine(), nullptr),
        c(descriptor.dst_desc(), Engine(), nullptr),
        scratch(descriptor.scratchpad_desc(), Engine()) {
    arguments = {{DNNL_ARG_SRC, a},
                 {DNNL_ARG_WEIGHTS, b},
                 {DNNL_ARG_DST, c},
                 {DNNL_ARG_SCRATCHPAD, scratch}};
  }

  dnnl::matmul::primitive_desc descriptor;
  dnnl::matmul product;
  dnnl::stream stream;
  memory a, b, c, scratch;
  std::unordered_map<int, memory> arguments;
};

Gemm::Gemm(const GemmShape& shape) {
  const OneThread one;
  state_ = std::make_unique<State>(shape);
}

Gemm::~Gemm() = default;
Gemm::Gemm(Gemm&&) noexcept = default;
Gemm& Gemm::operator=(Gemm&&) noexcept = default;

void Gemm::operator()(const void* a, const void* b, void* c) {
  state_->a.set_data_handle(const_cast<void*>(a));
  state_->b.set_data_handle(const_cast<void*>(b));
  state_->c.set_data_handle(c);
  state_->product.execute(state_->stream, state_->arguments);
}

void ParallelGemm(const GemmShape& shape, const void* a, const void* b, void* c) {
  // Every piece packs all of B again, which is cheap beside 512 rows; more pieces
  // than threads even out what other processes take from one of them.
  constexpr int64_t kRows = 512, kPiecesPerThread = 4, kRowMultiple = 16;
  const int64_t threads = OpThreads();
  const int64_t pieces = std::clamp(shape.m / kRows, threads, kPiecesPerThread * threads);
  const int64_t rows =
      (shape.m + pieces * kRowMultiple - 1) / (pieces * kRowMultiple) * kRowMultiple;
  const int64_t a_step = (shape.transpose_a ? 1 : shape.a_stride) * ElementSize(shape.operands);
  const int64_t c_step = shape.c_stride * ElementSize(shape.result);
  ParallelFor(shape.m, rows, [&](int64_t begin, int64_t end) {
    GemmShape piece = shape;
    piece.m = end - begin;
    Gemm product(piece);
    product(static_cast<const char*>(a) + begin * a_step, b,
            static_cast<char*>(c) + begin * c_step);
  });
}

}  // namespace flatquant::compress
