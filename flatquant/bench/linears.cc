#include <fmt/format.h>

#include <set>

#include "flatquant/bench/ceiling.h"
#include "flatquant/bench/operations.h"
#include "flatquant/bench/stopwatch.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

// From this many tokens on a product is bound by arithmetic.
constexpr int64_t kManyTokens = 32;

struct Operands {
  AlignedBuffer<float> x;
  AlignedBuffer<int8_t> codes;
  AlignedBuffer<float> scales;
  AlignedBuffer<float> y;
};

Operands MakeOperands(LinearShape shape, int64_t tokens, Rng& rng) {
  Operands operands;
  operands.x = RandomFloats(tokens * shape.cols, rng);
  operands.codes =
      AlignedBuffer<int8_t>(static_cast<size_t>(tokens * GemmIntActStride(shape.cols)));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < shape.cols; ++c) {
      operands.codes[static_cast<size_t>(t * GemmIntActStride(shape.cols) + c)] =
          static_cast<int8_t>(static_cast<int>(rng.Below(16)) - 8);
    }
  }
  operands.scales = RandomFloats(tokens, rng);
  operands.y = AlignedBuffer<float>(static_cast<size_t>(tokens * shape.rows));
  return operands;
}

std::vector<std::byte> RandomBytes(size_t n, Rng& rng) {
  std::vector<std::byte> bytes(n);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(rng.Next());
  return bytes;
}

// One shape in one of the two arithmetics, for every number of tokens.
template <typename Weights, typename Multiply>
void RunShape(LinearShape shape, const char* variant, const std::vector<Weights>& copies,
              const std::vector<int64_t>& all_tokens, int repetitions, const Multiply& multiply,
              Ceiling (*peak)(const Limits&), LimitedResults* results) {
  Rng rng(2);
  for (int64_t tokens : all_tokens) {
    Operands operands = MakeOperands(shape, tokens, rng);
    const std::vector<double> seconds = SecondsPerCall(repetitions, [&](int64_t call) {
      multiply(copies[static_cast<size_t>(call) % copies.size()], tokens, operands);
    });
    const bool is_many = tokens >= kManyTokens;
    const double work = is_many ? 2.0 * static_cast<double>(tokens * shape.rows * shape.cols)
                                : static_cast<double>(copies[0].bytes());
    std::vector<double> values;
    for (double s : seconds) values.push_back(work / s / 1e9);
    Result result;
    result.bench = "linear";
    result.variant = variant;
    result.test = fmt::format("{}x{} m{}", shape.rows, shape.cols, tokens);
    result.batch = tokens;
    result.value = Median(values);
    result.spread = Deviation(values);
    result.unit = is_many ? "Gop/s" : "GB/s";
    result.bytes = copies[0].bytes();
    result.parameters = static_cast<uint64_t>(shape.rows * shape.cols);
    const double rate = result.value * 1e9;
    results->Add(std::move(result), rate, is_many ? peak : ReadBandwidth);
  }
}

std::vector<GemmIntWeights> IntegerCopies(LinearShape shape, Rng& rng, ThreadPool& pool) {
  const auto bytes = RandomBytes(static_cast<size_t>(shape.rows * shape.cols / 2), rng);
  const std::vector<float> ones(static_cast<size_t>(shape.rows), 1.0f);
  GemmIntSource source;
  source.rows = shape.rows;
  source.cols = shape.cols;
  source.weight = bytes.data();
  source.scale = reinterpret_cast<const std::byte*>(ones.data());
  std::vector<GemmIntWeights> copies;
  const int64_t count = CopiesBeyondCaches(bytes.size());
  for (int64_t i = 0; i < count; ++i) copies.push_back(PackGemmInt(source, pool));
  return copies;
}

std::vector<FloatWeights> FloatCopies(LinearShape shape, Rng& rng, ThreadPool& pool) {
  std::vector<uint16_t> halves(static_cast<size_t>(shape.rows * shape.cols));
  for (uint16_t& half : halves) half = 0x3c00 | (rng.Next() & 0x807f);  // +-0.008 to 0.016
  FloatWeightsSource source;
  source.dtype = DType::kBF16;
  source.rows = shape.rows;
  source.cols = shape.cols;
  source.weight = reinterpret_cast<const std::byte*>(halves.data());
  std::vector<FloatWeights> copies;
  const int64_t count = CopiesBeyondCaches(halves.size() * sizeof(uint16_t));
  for (int64_t i = 0; i < count; ++i) {
    copies.push_back(LoadFloatWeights(source, GemmFloatMath::kBF16, pool));
  }
  return copies;
}

void MultiplyIntegers(const GemmIntWeights& weights, int64_t tokens, Operands& operands,
                      ThreadPool& pool) {
  GemmIntArgs args;
  args.act = operands.codes.data();
  args.act_stride = GemmIntActStride(weights.cols);
  args.act_scale = operands.scales.data();
  args.act_bits = 4;
  args.tokens = tokens;
  args.weights = &weights;
  args.y = operands.y.data();
  args.y_stride = weights.rows;
  GemmInt(args, pool);
}

void MultiplyFloats(const FloatWeights& weights, int64_t tokens, Operands& operands,
                    ThreadPool& pool) {
  GemmFloatArgs args;
  args.x = operands.x.data();
  args.tokens = tokens;
  args.weights = &weights;
  args.row_end = weights.rows;
  args.y = operands.y.data();
  args.y_stride = weights.rows;
  GemmFloat(args, pool);
}

}  // namespace

void RunLinears(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run) {
  LimitedResults results(pool);
  std::vector<int64_t> tokens = plan.batches;
  for (int64_t n : plan.prompts) {
    if (n > 0) tokens.push_back(n);
  }
  std::set<std::pair<int64_t, int64_t>> shapes;  // equal ones once
  for (Linear which : kLinears) {
    const LinearShape shape = ShapeOf(config, which);
    shapes.emplace(shape.rows, shape.cols);
  }
  Rng rng(1);
  const auto with_pool = [&pool](auto multiply) {
    return [multiply, &pool](const auto& weights, int64_t m, Operands& operands) {
      multiply(weights, m, operands, pool);
    };
  };
  for (const auto& [rows, cols] : shapes) {
    const LinearShape shape{rows, cols};
    RunShape(shape, "w4a4", IntegerCopies(shape, rng, pool), tokens, plan.repetitions,
             with_pool(MultiplyIntegers), IntegerPeak, &results);
    RunShape(shape, "bf16", FloatCopies(shape, rng, pool), tokens, plan.repetitions,
             with_pool(MultiplyFloats), FloatPeak, &results);
  }
  results.Finish(run);
}

}  // namespace flatquant::bench
