#include "flatquant/compress/ops/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "flatquant/base/half.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/gemm.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// A contiguous [rows, columns] tensor, as float or bfloat16.
at::Tensor Operand(const at::Tensor& t, bool amp) {
  const at::Tensor flat = t.reshape({-1, t.size(-1)}).contiguous();
  const at::ScalarType wanted = amp ? at::kBFloat16 : at::kFloat;
  if (flat.scalar_type() == wanted) return flat;
  if (!amp) return flat.to(wanted);
  const at::Tensor rounded = at::empty_like(flat, flat.options().dtype(wanted));
  const float* from = flat.data_ptr<float>();
  auto* to = static_cast<uint16_t*>(rounded.data_ptr());
  ParallelFor(flat.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
    FloatToBF16(from + begin, to + begin, static_cast<size_t>(end - begin));
  });
  return rounded;
}

// c (+)= op(a) op(b) on contiguous matrices of one dtype.
void Multiply(const at::Tensor& a, bool transpose_a, const at::Tensor& b, bool transpose_b,
              const at::Tensor& c, bool accumulate = false) {
  if (c.numel() == 0) return;
  const auto type = [](const at::Tensor& t) {
    return t.scalar_type() == at::kFloat ? GemmType::kFloat : GemmType::kBFloat16;
  };
  GemmShape shape;
  shape.m = c.size(0);
  shape.n = c.size(1);
  shape.k = transpose_a ? a.size(0) : a.size(1);
  shape.a_stride = a.size(1);
  shape.b_stride = b.size(1);
  shape.c_stride = c.size(1);
  shape.transpose_a = transpose_a;
  shape.transpose_b = transpose_b;
  shape.operands = type(a);
  shape.result = type(c);
  shape.accumulate = accumulate;
  ParallelGemm(shape, a.data_ptr(), b.data_ptr(), c.data_ptr());
}

// A gradient that autograd wants in bfloat16, since the input came in it, is
// written so by its matrix product, where that is one product.
struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, at::TensorList weights,
                               bool amp) {
    variable_list saved = {Operand(x, amp)}, results;
    std::vector<int64_t> sizes = x.sizes().vec();
    std::vector<int64_t> types = {static_cast<int64_t>(x.scalar_type())};
    for (const at::Tensor& w : weights) {
      saved.push_back(Operand(w, amp));
      const at::Tensor y = at::empty({saved[0].size(0), w.size(0)}, x.options().dtype(at::kFloat));
      Multiply(saved[0], false, saved.back(), true, y);
      sizes.back() = w.size(0);
      results.push_back(y.view(sizes));
      types.push_back(static_cast<int64_t>(w.scalar_type()));
    }
    ctx->saved_data["amp"] = amp;
    ctx->saved_data["sizes"] = x.sizes();
    ctx->saved_data["types"] = types;
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    return results;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const bool amp = ctx->saved_data["amp"].toBool();
    const std::vector<int64_t> types = ctx->saved_data["types"].toIntVector();
    const at::Tensor& x = saved[0];
    variable_list results(saved.size() + 1);  // x, the weights, amp
    const auto empty = [&](const at::Tensor& like, at::ScalarType type) {
      return at::empty(like.sizes(), x.options().dtype(type));
    };
    const auto wanted = [&](size_t i) {
      return amp ? static_cast<at::ScalarType>(types[i]) : at::kFloat;
    };
    const auto used = std::count_if(gradients.begin(), gradients.end(),
                                    [](const at::Tensor& g) { return g.defined(); });
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      const at::Tensor g = Operand(gradients[i], amp);
      if (ctx->needs_input_grad(0)) {
        const bool first = !results[0].defined();
        if (first) results[0] = empty(x, used == 1 ? wanted(0) : at::kFloat);
        Multiply(g, false, saved[i + 1], false, results[0], /*accumulate=*/!first);
      }
      if (ctx->needs_input_grad(i + 1)) {
        results[i + 1] = empty(saved[i + 1], wanted(i + 1));
        Multiply(g, true, x, false, results[i + 1]);
      }
    }
    if (results[0].defined()) {
      results[0] = Operand(results[0], static_cast<at::ScalarType>(types[0]) == at::kBFloat16)
                       .view(ctx->saved_data["sizes"].toIntVector());
    }
    return results;
  }
};

bool Fusable(const at::Tensor& t) {
  return t.is_cpu() && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16);
}

}  // namespace

at::Tensor LinearOp(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, Amp amp) {
  return LinearGroup(x, {w}, {bias}, amp)[0];
}

std::vector<at::Tensor> LinearGroup(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, Amp amp) {
  std::vector<at::Tensor> y;
  if (amp != Amp::kF16 && Fusable(x) && std::all_of(weights.begin(), weights.end(), Fusable)) {
    y = LinearFunction::apply(x, at::TensorList(weights), amp == Amp::kBF16 && GemmTakesBFloat16());
    for (size_t i = 0; i < biases.size(); ++i) {
      if (biases[i].defined()) y[i] = y[i] + biases[i];
    }
    return y;
  }
  for (size_t i = 0; i < weights.size(); ++i) {
    y.push_back(composite::Linear(x, weights[i], biases.empty() ? at::Tensor() : biases[i], amp));
  }
  return y;
}

}  // namespace flatquant::compress
