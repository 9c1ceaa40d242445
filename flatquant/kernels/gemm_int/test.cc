#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/gemm_int/tile_gemm.h"
#include "flatquant/kernels/kernel_testing.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

// The AMX kernel on an emulated tile unit.
template <int64_t kBlockCols>
void ComputeEmulated(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
                     int64_t row_end) noexcept {
  TileGemm<EmulatedTiles, kBlockCols>(args, m_begin, m_end, row_begin, row_end).Run();
}

template <int64_t kBlockCols>
constexpr GemmIntKernel kEmulated = {kVnniPanelRows, VnniPackedBytes, VnniPack,
                                     ComputeEmulated<kBlockCols>};

// Calls test(kernel) for each kernel that this CPU can run and for emulated ones,
// whose small blocks give small shapes every kind of edge.
void ForEachGemm(const auto& test) {
  kernel_testing::ForEachKernel<GemmIntKernel>(test);
  {
    SCOPED_TRACE("emulated tiles, blocks of one step");
    test(kEmulated<64>);
  }
  {
    SCOPED_TRACE("emulated tiles, blocks of two steps");
    test(kEmulated<128>);
  }
}

// Integers and their canonical bytes.
struct IntMatrix {
  int bits;
  int64_t rows;
  int64_t cols;
  std::vector<int8_t> values;
  std::vector<std::byte> bytes;

  int8_t at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

IntMatrix MakeMatrix(int bits, int64_t rows, int64_t cols, const auto& next) {
  IntMatrix matrix{bits, rows, cols, {}, {}};
  for (int64_t i = 0; i < rows * cols; ++i) matrix.values.push_back(static_cast<int8_t>(next()));
  const int64_t row_bytes = bits <= 4 ? (cols + 1) / 2 : cols;
  matrix.bytes.resize(static_cast<size_t>(rows * row_bytes));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const uint8_t value = static_cast<uint8_t>(matrix.at(r, c));
      std::byte& byte = matrix.bytes[static_cast<size_t>(r * row_bytes + (bits <= 4 ? c / 2 : c))];
      byte |= bits > 4 ? std::byte{value}
                       : std::byte{static_cast<uint8_t>((value & 15) << 4 * (c % 2))};
    }
  }
  return matrix;
}

struct Problem {
  IntMatrix weight;
  AlignedBuffer<float> scale, bias, act_scale;
  AlignedBuffer<int8_t> act;
  int64_t act_stride;
  int64_t tokens;
};

Problem MakeProblem(IntMatrix weight, int64_t tokens, Rng& rng, const auto& next_act) {
  Problem problem{std::move(weight), {}, {}, {}, {}, 0, tokens};
  problem.scale = RandomFloats(rng, problem.weight.rows);
  problem.bias = RandomFloats(rng, problem.weight.rows);
  problem.act_scale = RandomFloats(rng, tokens);
  problem.act_stride = GemmIntActStride(problem.weight.cols);
  problem.act = AlignedBuffer<int8_t>(static_cast<size_t>(tokens * problem.act_stride));
  for (int64_t m = 0; m < tokens; ++m) {
    for (int64_t c = 0; c < problem.weight.cols; ++c) {
      problem.act[static_cast<size_t>(m * problem.act_stride + c)] =
          static_cast<int8_t>(next_act());
    }
  }
  return problem;
}

constexpr float kUntouched = -77;

GemmIntWeights PackProblem(const Problem& p, bool has_bias, const GemmIntKernel& kernel,
                           ThreadPool& pool) {
  const IntMatrix& w = p.weight;
  return PackGemmInt(
      {w.bits, w.rows, w.cols, w.bytes.data(), reinterpret_cast<const std::byte*>(p.scale.data()),
       has_bias ? reinterpret_cast<const std::byte*>(p.bias.data()) : nullptr},
      pool, &kernel);
}

// y against the formula in exact integers; the float epilogue has five roundings.
// residual: [tokens, y_stride], as it was before, or nullptr.
void CheckAgainstFormula(const Problem& p, bool has_bias, const float* residual, const float* y,
                         int64_t y_stride) {
  const IntMatrix& w = p.weight;
  Worst worst;
  for (int64_t m = 0; m < p.tokens; ++m) {
    for (int64_t r = 0; r < w.rows; ++r) {
      int64_t sum = 0;
      for (int64_t c = 0; c < w.cols; ++c) {
        sum += int64_t{p.act[static_cast<size_t>(m * p.act_stride + c)]} * w.at(r, c);
      }
      const double product = static_cast<double>(sum) * p.act_scale[static_cast<size_t>(m)] *
                             p.scale[static_cast<size_t>(r)];
      const double bias = has_bias ? p.bias[static_cast<size_t>(r)] : 0.0;
      const double added = residual == nullptr ? 0.0 : residual[m * y_stride + r];
      worst.Compare(y[m * y_stride + r], product + bias + added,
                    5 * kEpsilon * (std::abs(product) + std::abs(bias) + std::abs(added)), m, r);
    }
    for (int64_t r = w.rows; r < y_stride; ++r) {
      EXPECT_EQ(y[m * y_stride + r], kUntouched) << "written past the rows";
    }
  }
  worst.Check();
}

// How a problem is run.
struct Variant {
  bool has_bias = true;
  bool has_residual = false;  // y itself: it is read where it is written
  int act_bits = 8;
};

void RunAndCheck(const Problem& p, const Variant& variant, const GemmIntKernel& kernel,
                 ThreadPool& pool) {
  const GemmIntWeights weights = PackProblem(p, variant.has_bias, kernel, pool);
  const int64_t y_stride = p.weight.rows + 3;
  AlignedBuffer<float> y(static_cast<size_t>(p.tokens * y_stride));
  for (float& value : y) value = kUntouched;
  const std::vector<float> before(y.begin(), y.end());
  GemmInt({.act = p.act.data(),
           .act_stride = p.act_stride,
           .act_scale = p.act_scale.data(),
           .tokens = p.tokens,
           .weights = &weights,
           .y = y.data(),
           .y_stride = y_stride,
           .residual = variant.has_residual ? y.data() : nullptr,
           .residual_stride = y_stride,
           .act_bits = variant.act_bits},
          pool);
  CheckAgainstFormula(p, variant.has_bias, variant.has_residual ? before.data() : nullptr, y.data(),
                      y_stride);
}

TEST(GemmIntTest, AgreesWithTheFormulaOnOddShapes) {
  ThreadPool pool(2);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    ForEachSeed(120, [&](Rng& rng) {
      const int bits = 2 + static_cast<int>(rng.Below(7));
      const int64_t range = int64_t{1} << bits;
      const auto weight = [&] { return static_cast<int64_t>(rng.Below(range)) - range / 2; };
      const int act_bits = 2 + static_cast<int>(rng.Below(7));
      const int64_t act_range = int64_t{1} << act_bits;
      const auto act = [&] { return static_cast<int64_t>(rng.Below(act_range)) - act_range / 2; };
      IntMatrix matrix = MakeMatrix(bits, RandomSize(rng, 150), RandomSize(rng, 300), weight);
      const Problem problem = MakeProblem(std::move(matrix), RandomSize(rng, 40), rng, act);
      const Variant variant{rng.Below(2) == 0, rng.Below(2) == 0, act_bits};
      RunAndCheck(problem, variant, kernel, pool);
    });
  });
}

// The corners of the range add up to the largest sums; int16 steps or saturation
// anywhere would show.
TEST(GemmIntTest, LargestSumsAreExact) {
  ThreadPool pool(1);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    for (int bits : {4, 8}) {
      for (int sign : {-1, 1}) {
        Rng rng(1);
        const int corner = sign < 0 ? -(1 << (bits - 1)) : (1 << (bits - 1)) - 1;
        IntMatrix matrix = MakeMatrix(bits, 2, kGemmIntMaxCols, [&] { return corner; });
        const Problem problem = MakeProblem(std::move(matrix), 2, rng, [] { return -128; });
        RunAndCheck(problem, {.has_bias = false}, kernel, pool);
      }
    }
  });
}

// act_bits is a promise about act: the largest sums that it allows are exact too.
TEST(GemmIntTest, LargestSumsOfFewerActivationBitsAreExact) {
  ThreadPool pool(1);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    for (int act_bits = 2; act_bits <= 8; ++act_bits) {
      for (int weight : {-8, 7}) {
        Rng rng(1);
        IntMatrix matrix = MakeMatrix(4, 3, 5000, [&] { return weight; });
        const Problem problem =
            MakeProblem(std::move(matrix), 2, rng, [&] { return -(1 << (act_bits - 1)); });
        RunAndCheck(problem, {.has_bias = false, .act_bits = act_bits}, kernel, pool);
      }
    }
  });
}

TEST(GemmIntTest, SeveralTokenSlices) {
  ThreadPool pool(2);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    Rng rng(5);
    IntMatrix matrix =
        MakeMatrix(4, 70, 72, [&] { return static_cast<int64_t>(rng.Below(16)) - 8; });
    const Problem problem = MakeProblem(std::move(matrix), 600, rng,
                                        [&] { return static_cast<int64_t>(rng.Below(16)) - 8; });
    RunAndCheck(problem, {.has_residual = true, .act_bits = 4}, kernel, pool);
  });
}

// 4 MB of output on vector boundaries, from where on the AMX kernel streams.
TEST(GemmIntTest, LargeOutputs) {
  ThreadPool pool(2);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    Rng rng(7);
    IntMatrix matrix = MakeMatrix(4, 2045, 24, [&] { return static_cast<int>(rng.Below(16)) - 8; });
    const Problem problem = MakeProblem(std::move(matrix), 513, rng,
                                        [&] { return static_cast<int>(rng.Below(255)) - 127; });
    RunAndCheck(problem, {.has_residual = true}, kernel, pool);
  });
}

// A group's linears differ in shape, bits and activations.
TEST(GemmIntTest, AGroupComputesEachOfItsLinears) {
  ThreadPool pool(2);
  ForEachGemm([&](const GemmIntKernel& kernel) {
    ForEachSeed(20, [&](Rng& rng) {
      const int64_t tokens = RandomSize(rng, 20);
      std::vector<Problem> problems;
      std::vector<GemmIntWeights> weights;
      std::vector<AlignedBuffer<float>> y;
      std::vector<GemmIntArgs> linears;
      for (int i = 0; i < 3; ++i) {
        const int bits = rng.Below(2) == 0 ? 4 : 8;
        const int half = 1 << (bits - 1);
        IntMatrix matrix = MakeMatrix(bits, RandomSize(rng, 200), RandomSize(rng, 100), [&] {
          return static_cast<int>(rng.Below(static_cast<uint64_t>(2 * half))) - half;
        });
        problems.push_back(MakeProblem(std::move(matrix), tokens, rng,
                                       [&] { return static_cast<int>(rng.Below(255)) - 127; }));
        weights.push_back(PackProblem(problems.back(), true, kernel, pool));
        y.emplace_back(static_cast<size_t>(tokens * problems.back().weight.rows));
      }
      for (size_t i = 0; i < problems.size(); ++i) {
        const Problem& p = problems[i];
        linears.push_back({.act = p.act.data(),
                           .act_stride = p.act_stride,
                           .act_scale = p.act_scale.data(),
                           .tokens = tokens,
                           .weights = &weights[i],
                           .y = y[i].data(),
                           .y_stride = p.weight.rows});
      }
      GemmInt(linears, pool);
      for (size_t i = 0; i < problems.size(); ++i) {
        CheckAgainstFormula(problems[i], true, nullptr, y[i].data(), problems[i].weight.rows);
      }
    });
  });
}

}  // namespace
}  // namespace flatquant
