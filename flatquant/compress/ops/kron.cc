#include "flatquant/compress/ops/kron.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/gemm.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Floats of one tile: the four tiles of backward stay in a core's L2 together.
constexpr int64_t kTileFloats = 1 << 15;

// A tile holds some tokens with their rows gathered: [L, tokens, R] instead of
// [tokens, L, R]. Read as [L * tokens, R] it is multiplied by `right` in one
// product, read as [L, tokens * R] by `left` in another.
struct Sizes {
  int64_t tokens = 0;  // of the tile, or of all of x
  int64_t left = 1;
  int64_t right = 1;

  int64_t width() const { return left * right; }
};

void Gather(const float* x, const Sizes& s, float* tile) {
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t l = 0; l < s.left; ++l) {
      std::memcpy(tile + (l * s.tokens + t) * s.right, x + (t * s.left + l) * s.right,
                  sizeof(float) * s.right);
    }
  }
}

void Scatter(const float* tile, const Sizes& s, float* x) {
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t l = 0; l < s.left; ++l) {
      std::memcpy(x + (t * s.left + l) * s.right, tile + (l * s.tokens + t) * s.right,
                  sizeof(float) * s.right);
    }
  }
}

// op(left) tile, with op the transpose for Y = left^T X.
GemmShape LeftProduct(const Sizes& s, bool transpose) {
  GemmShape shape;
  shape.m = shape.k = shape.a_stride = s.left;
  shape.n = shape.b_stride = shape.c_stride = s.tokens * s.right;
  shape.transpose_a = transpose;
  return shape;
}

// tile op(right), with op the transpose for dX = dY right^T.
GemmShape RightProduct(const Sizes& s, bool transpose) {
  GemmShape shape;
  shape.m = s.left * s.tokens;
  shape.n = shape.k = shape.a_stride = shape.b_stride = shape.c_stride = s.right;
  shape.transpose_b = transpose;
  return shape;
}

// dleft += tile tile^T
GemmShape LeftGradient(const Sizes& s) {
  GemmShape shape;
  shape.m = shape.n = shape.c_stride = s.left;
  shape.k = shape.a_stride = shape.b_stride = s.tokens * s.right;
  shape.transpose_b = shape.accumulate = true;
  return shape;
}

// dright += tile^T tile
GemmShape RightGradient(const Sizes& s) {
  GemmShape shape;
  shape.m = shape.n = shape.a_stride = shape.b_stride = shape.c_stride = s.right;
  shape.k = s.left * s.tokens;
  shape.transpose_a = shape.accumulate = true;
  return shape;
}

// What one thread needs for tiles of one size.
struct Forward {
  Forward(const Sizes& s, bool has_left, bool has_right) : sizes(s) {
    if (has_left) left.emplace(LeftProduct(s, true));
    if (has_right) right.emplace(RightProduct(s, false));
  }

  // scratch: three tiles.
  void operator()(const float* x, const float* p_left, const float* p_right, float* y,
                  float* scratch) {
    if (!left) return (*right)(x, p_right, y);
    const int64_t tile = sizes.tokens * sizes.width();
    float *first = scratch, *second = scratch + tile;
    Gather(x, sizes, first);
    if (right) {
      (*right)(first, p_right, second);
      std::swap(first, second);
    }
    (*left)(p_left, first, second);
    Scatter(second, sizes, y);
  }

  Sizes sizes;
  std::optional<Gemm> left, right;
};

struct Backward {
  Backward(const Sizes& s, bool has_left, bool has_right, bool needs_x, bool needs_p) : sizes(s) {
    const auto make = [](std::optional<Gemm>& gemm, bool wanted, const GemmShape& shape) {
      if (wanted) gemm.emplace(shape);
    };
    make(left, has_left, LeftProduct(s, false));
    make(right, has_right, RightProduct(s, true));
    make(left_gradient, has_left && needs_p, LeftGradient(s));
    make(right_gradient, has_right && needs_p, RightGradient(s));
    scatters_x = needs_x;
  }

  // With V = dY right^T: dX = left V, dleft += X V^T, dright += X^T (left dY).
  // dx may be null. scratch: four tiles.
  void operator()(const float* x, const float* dy, const float* p_left, const float* p_right,
                  float* dx, float* dleft, float* dright, float* scratch) {
    if (!left) {
      if (scatters_x) (*right)(dy, p_right, dx);
      if (right_gradient) (*right_gradient)(x, dy, dright);
      return;
    }
    const int64_t size = sizes.tokens * sizes.width();
    float *x_tile = scratch, *dy_tile = scratch + size, *v_tile = scratch + 2 * size,
          *product = scratch + 3 * size;
    Gather(dy, sizes, dy_tile);
    if (right) {
      (*right)(dy_tile, p_right, v_tile);
    } else {
      v_tile = dy_tile;
    }
    if (scatters_x) {
      (*left)(p_left, v_tile, product);
      Scatter(product, sizes, dx);
    }
    if (!left_gradient) return;
    Gather(x, sizes, x_tile);
    (*left_gradient)(x_tile, v_tile, dleft);
    if (!right_gradient) return;
    (*left)(p_left, dy_tile, product);
    (*right_gradient)(x_tile, product, dright);
  }

  Sizes sizes;
  std::optional<Gemm> left, right, left_gradient, right_gradient;
  bool scatters_x = false;
};

// How x is cut up: into tiles of so many tokens (the last may be smaller), and
// tiles into pieces, each with sums of its own. Both depend on sizes and the
// thread count alone, and so do the sums.
struct Cut {
  explicit Cut(const Sizes& all)
      : tile(std::clamp<int64_t>(kTileFloats / all.width(), 1, all.tokens)) {
    // More pieces than threads even out what other processes take from one.
    constexpr int64_t kPiecesPerThread = 4;
    const int64_t tiles = (all.tokens + tile - 1) / tile;
    const int64_t most = std::min<int64_t>(tiles, kPiecesPerThread * OpThreads());
    piece = (tiles + most - 1) / most * tile;
    pieces = (all.tokens + piece - 1) / piece;
  }

  int64_t tile, piece;  // tokens
  int64_t pieces;
};

// Calls body(piece, state, first token, scratch of four tiles) for every tile;
// make(sizes) builds what a thread needs for one tile size.
template <typename Make, typename Body>
void ForEachTile(const Sizes& all, const Cut& cut, const Make& make, const Body& body) {
  using State = std::invoke_result_t<Make, Sizes>;
  struct Worker {
    std::vector<float> scratch;
    std::optional<State> state;
  };
  std::vector<Worker> workers(OpThreads());
  ParallelForEach(cut.pieces, [&](int thread, int64_t piece) {
    Worker& worker = workers[thread];
    worker.scratch.resize(4 * cut.tile * all.width());
    const int64_t end = std::min(all.tokens, (piece + 1) * cut.piece);
    for (int64_t token = piece * cut.piece; token < end; token += cut.tile) {
      const int64_t tokens = std::min(cut.tile, end - token);
      if (!worker.state || worker.state->sizes.tokens != tokens) {
        worker.state.emplace(make(Sizes{tokens, all.left, all.right}));
      }
      body(piece, *worker.state, token, worker.scratch.data());
    }
  });
}

const float* Data(const at::Tensor& t) { return t.defined() ? t.data_ptr<float>() : nullptr; }

struct KronFunction : torch::autograd::Function<KronFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const OptionalTensor& left_matrix, const OptionalTensor& right_matrix) {
    const at::Tensor x = input.contiguous();
    const at::Tensor left = left_matrix ? left_matrix->contiguous() : at::Tensor();
    const at::Tensor right = right_matrix ? right_matrix->contiguous() : at::Tensor();
    const Sizes all = Measure(x, left, right);
    const at::Tensor y = at::empty_like(x);
    const float* from = x.data_ptr<float>();
    float* to = y.data_ptr<float>();
    ForEachTile(
        all, Cut(all), [&](const Sizes& s) { return Forward(s, left.defined(), right.defined()); },
        [&](int64_t, Forward& forward, int64_t token, float* scratch) {
          const int64_t offset = token * all.width();
          forward(from + offset, Data(left), Data(right), to + offset, scratch);
        });
    ctx->save_for_backward({x, left, right});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &left = saved[1], &right = saved[2];
    const at::Tensor g = gradients[0].contiguous();
    const Sizes all = Measure(x, left, right);
    const bool needs_x = ctx->needs_input_grad(0);
    const bool needs_left = left.defined() && ctx->needs_input_grad(1);
    const bool needs_right = right.defined() && ctx->needs_input_grad(left.defined() ? 2 : 1);
    const bool needs_p = needs_left || needs_right;
    const Cut cut(all);
    const at::Tensor dx = needs_x ? at::empty_like(x) : at::Tensor();
    const at::Tensor dleft = at::zeros({cut.pieces, all.left, all.left}, x.options());
    const at::Tensor dright = at::zeros({cut.pieces, all.right, all.right}, x.options());
    const float *from = x.data_ptr<float>(), *dy = g.data_ptr<float>();
    float* to = needs_x ? dx.data_ptr<float>() : nullptr;
    float *sum_left = dleft.data_ptr<float>(), *sum_right = dright.data_ptr<float>();
    ForEachTile(
        all, cut,
        [&](const Sizes& s) {
          return Backward(s, left.defined(), right.defined(), needs_x, needs_p);
        },
        [&](int64_t piece, Backward& backward, int64_t token, float* scratch) {
          const int64_t offset = token * all.width();
          backward(from + offset, dy + offset, Data(left), Data(right),
                   needs_x ? to + offset : nullptr, sum_left + piece * all.left * all.left,
                   sum_right + piece * all.right * all.right, scratch);
        });
    return {dx, needs_left ? dleft.sum(0) : at::Tensor(),
            needs_right ? dright.sum(0) : at::Tensor()};
  }

  // Without `left`, rows of R are tokens of their own.
  static Sizes Measure(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right) {
    Sizes all;
    all.left = left.defined() ? left.size(0) : 1;
    all.right = right.defined() ? right.size(0) : x.size(-1) / all.left;
    all.tokens = x.numel() / all.width();
    return all;
  }
};

}  // namespace

at::Tensor KronTransform(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right) {
  FLATQUANT_CHECK(left.defined() || right.defined());
  const int64_t n = x.size(-1);
  if (left.defined() && right.defined()) {
    FLATQUANT_CHECK(left.size(0) * right.size(0) == n);
  } else {
    FLATQUANT_CHECK(n % (left.defined() ? left : right).size(0) == 0);
  }
  if (!IsCpuFloat(x) || !IsCpuFloat(left) || !IsCpuFloat(right) || x.numel() == 0) {
    return composite::KronTransform(x, left, right);
  }
  return KronFunction::apply(x, ToOptional(left), ToOptional(right));
}

}  // namespace flatquant::compress
