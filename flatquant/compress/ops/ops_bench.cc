// Times every operation of one calibration step of one decoder block, forward and
// backward, in processor seconds of one thread (so that a busy machine matters
// little). Not part of the build; with LibTorch and oneDNN:
//
//   cd flatquant/compress/ops
//   g++ -O3 -march=x86-64-v3 -fopenmp -std=gnu++20 -I../../.. -fno-math-errno
//       -fno-trapping-math $(ls *.cc | grep -vE 'test|_cuda') ../../base/half.cc
//       ../../base/error.cc ../../base/thread_pool.cc -ltorch -ltorch_cpu -lc10
//       -ldnnl -o /tmp/ops_bench && /tmp/ops_bench demo

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "flatquant/compress/ops/attention.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/ops/kron.h"
#include "flatquant/compress/ops/linear.h"
#include "flatquant/compress/ops/memory.h"
#include "flatquant/compress/ops/norm.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

double Seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Model {
  int64_t hidden, ffn, heads, kv_heads, dim, batch, tokens;
  int64_t hidden_left, ffn_left;
};

at::Tensor Random(at::IntArrayRef sizes, bool gradient) {
  return at::randn(sizes, at::kFloat).set_requires_grad(gradient);
}

double total = 0;

// Median of several runs, in milliseconds.
void Time(const std::string& name, int repeats,
          const std::function<std::vector<at::Tensor>()>& forward) {
  std::vector<double> ahead, back;
  for (int i = 0; i < repeats; ++i) {
    const double start = Seconds();
    const std::vector<at::Tensor> y = forward();
    const double middle = Seconds();
    std::vector<at::Tensor> g;
    for (const at::Tensor& t : y) g.push_back(at::randn_like(t));
    const double resume = Seconds();
    torch::autograd::backward(y, g);
    back.push_back(Seconds() - resume);
    ahead.push_back(middle - start);
  }
  std::sort(ahead.begin(), ahead.end());
  std::sort(back.begin(), back.end());
  const double f = 1e3 * ahead[ahead.size() / 2], b = 1e3 * back[back.size() / 2];
  total += f + b;
  std::printf("%-28s %9.2f %9.2f\n", name.c_str(), f, b);
}

void Run(const Model& m, int repeats, Amp amp) {
  const int64_t n = m.batch * m.tokens, q = m.heads * m.dim, kv = m.kv_heads * m.dim;
  const at::ScalarType operand = OperandType(amp, at::kFloat);
  const at::Tensor clip = Random({1}, true), x = Random({m.batch, m.tokens, m.hidden}, true),
                   wide = Random({m.batch, m.tokens, m.ffn}, true),
                   up = Random({m.batch, m.tokens, m.ffn}, true);
  const auto square = [](int64_t size) { return Random({size, size}, true); };
  const at::Tensor left = square(m.hidden_left), right = square(m.hidden / m.hidden_left),
                   ffn_left = square(m.ffn_left), ffn_right = square(m.ffn / m.ffn_left),
                   heads = square(m.heads), head = square(m.dim);
  const at::Tensor norm = Random({m.hidden}, true);
  const auto weight = [](int64_t rows, int64_t columns, bool gradient = true) {
    return Random({rows, columns}, gradient);
  };
  std::printf("%-28s %9s %9s  ms of one core\n", "", "forward", "backward");
  Time("2 x RmsNorm", repeats, [&] {
    return std::vector{RmsNorm(x, norm, 1e-5), RmsNorm(x, norm, 1e-5)};
  });
  Time("kron attn_in, mlp_in", repeats, [&] {
    return std::vector{KronTransform(x, left, right), KronTransform(x, left, right)};
  });
  Time("kron attn_out", repeats, [&] { return std::vector{KronTransform(x, heads, {})}; });
  Time("kron mlp_out", repeats,
       [&] { return std::vector{KronTransform(wide, ffn_left, ffn_right)}; });
  Time("3 x act quant hidden", repeats, [&] {
    std::vector<at::Tensor> y;
    for (int i = 0; i < 3; ++i) y.push_back(FakeQuantActivation(x, clip, clip, 4, operand));
    return y;
  });
  Time("act quant ffn", repeats,
       [&] { return std::vector{FakeQuantActivation(wide, clip, clip, 4, operand)}; });
  const at::Tensor xq = x.detach().to(operand).set_requires_grad(true),
                   wideq = wide.detach().to(operand).set_requires_grad(true);
  const std::vector<at::Tensor> qkv = {weight(q, m.hidden), weight(kv, m.hidden),
                                       weight(kv, m.hidden)},
                                gate_up = {weight(m.ffn, m.hidden), weight(m.ffn, m.hidden)};
  const at::Tensor o = weight(m.hidden, q), down = weight(m.hidden, m.ffn);
  Time("linear q k v", repeats, [&] { return LinearGroup(xq, qkv, {}, amp); });
  Time("linear o", repeats, [&] { return std::vector{LinearOp(xq, o, {}, amp)}; });
  Time("linear gate up", repeats, [&] { return LinearGroup(xq, gate_up, {}, amp); });
  Time("linear down", repeats, [&] { return std::vector{LinearOp(wideq, down, {}, amp)}; });
  Time("swiglu", repeats, [&] { return std::vector{Swiglu(wide, up)}; });
  const at::Tensor heads_q = Random({m.batch, m.tokens, m.heads, m.dim}, true),
                   heads_k = Random({m.batch, m.tokens, m.kv_heads, m.dim}, true),
                   cosine = Random({m.tokens, m.dim / 2}, false);
  Time("rope q k", repeats, [&] {
    return std::vector{Rope(heads_q, cosine, cosine), Rope(heads_k, cosine, cosine)};
  });
  Time("head transform q k", repeats, [&] {
    return std::vector{KronTransform(heads_q, {}, head), KronTransform(heads_k, {}, head)};
  });
  Time("kv quant", repeats, [&] {
    return std::vector{FakeQuantKv(heads_k, clip, clip, 4), FakeQuantKv(heads_k, clip, clip, 4)};
  });
  Time("attention", repeats,
       [&] { return std::vector{CausalAttention(heads_q, heads_k, heads_k, 0, amp)}; });
  const int64_t rows = 2 * q + 2 * kv + 2 * m.ffn;
  const at::Tensor w = weight(rows, m.hidden, false), wd = weight(m.hidden, m.ffn, false);
  Time("kron weights", repeats, [&] {
    return std::vector{KronTransform(w, left, right), KronTransform(wd, ffn_left, ffn_right)};
  });
  const at::Tensor wt = weight(rows, m.hidden), wdt = weight(m.hidden, m.ffn),
                   clips = Random({rows, 1}, true), clips_d = Random({m.hidden, 1}, true);
  Time("weight quant", repeats, [&] {
    return std::vector{FakeQuantWeight(wt, clips, clips, 4, operand),
                       FakeQuantWeight(wdt, clips_d, clips_d, 4, operand)};
  });
  std::printf("total %.1f ms of one core, %lld tokens\n", total, static_cast<long long>(n));
}

}  // namespace
}  // namespace flatquant::compress

int main(int argc, char** argv) {
  using flatquant::compress::Model;
  flatquant::compress::SetOpThreads(1);
  flatquant::compress::KeepFreedMemory();
  const bool wide = argc > 1 && std::string(argv[1]) == "wide";
  const bool exact = argc > 2 && std::string(argv[2]) == "fp32";
  const auto amp = exact ? flatquant::compress::Amp::kOff : flatquant::compress::Amp::kBF16;
  const Model demo = {256, 704, 4, 2, 64, 4, 512, 16, 22};
  const Model larger = {512, 1376, 8, 4, 64, 4, 2048, 16, 16};
  flatquant::compress::Run(wide ? larger : demo, wide ? 3 : 7, amp);
}
