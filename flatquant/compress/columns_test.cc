#include "flatquant/compress/columns.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "flatquant/compress/methods/flattenquant/thresholds.h"

namespace flatquant::compress {
namespace {

at::Tensor Random(at::IntArrayRef shape, uint64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kDouble));
}

// Some channels ten times as wide as the others.
at::Tensor WithOutliers(at::Tensor x) {
  x.slice(-1, 0, c10::nullopt, 7).mul_(10);
  return x;
}

Threshold Cut(const at::Tensor& x, double growth, int top) {
  return ChooseThreshold(x.abs().flatten(0, -2).amax(0), growth, top);
}

TEST(Columns, PiecesAddUpToTheChannel) {
  const at::Tensor x = WithOutliers(Random({40, 23}, 1));
  for (const int bits : {4, 8}) {
    const int top = (1 << (bits - 1)) - 1;
    const SiteFlattening flattening = MakeFlattening(bits, Cut(x, 1.5, top), {});
    ASSERT_GT(flattening.channel.size(0), 23);
    const ColumnMap map =
        MakeColumnMap(bits, flattening.act_scale, 23, flattening.channel, flattening.piece);
    // Of values beyond the calibration's too.
    const at::Tensor columns = SplitChannels(3 * x, map);
    const at::Tensor sum = at::zeros_like(x).index_add(1, map.channel, columns);
    EXPECT_LT((sum - 3 * x).abs().max().item<double>(), 1e-12);
    const at::Tensor whole = at::where(map.is_last, at::zeros_like(columns), columns.abs());
    EXPECT_LE(whole.max().item<double>(), static_cast<double>(map.scale) * top * (1 + 1e-12));
  }
}

// Whole pieces are whole numbers of steps, so that a flattened channel is one whose
// grid reaches e times as far.
TEST(Columns, QuantizedPiecesAddUpToTheWidenedGrid) {
  const at::Tensor x = WithOutliers(Random({40, 23}, 2)).to(at::kFloat);
  for (const int bits : {2, 4, 8}) {
    const int top = (1 << (bits - 1)) - 1;
    const Threshold cut = Cut(x, 1.7, top);
    const SiteFlattening flattening = MakeFlattening(bits, cut, {});
    const ColumnMap map =
        MakeColumnMap(bits, flattening.act_scale, 23, flattening.channel, flattening.piece);
    const at::Tensor scale = at::full({1}, map.scale);
    const at::Tensor codes = (QuantizeColumns(2 * x, map, at::kFloat) / scale).round();
    EXPECT_LE(codes.abs().max().item<float>(), static_cast<float>(top));
    const at::Tensor sum = at::zeros_like(x).index_add(1, map.channel, codes);
    const at::Tensor limit = cut.pieces.to(at::kFloat) * top;
    const at::Tensor expected = at::minimum(at::maximum((2 * x / scale).round(), -limit), limit);
    EXPECT_TRUE(at::equal(sum, expected)) << bits;
  }
}

// Both operands in pieces: the product is that of the matrices.
TEST(Columns, ProductsStayWhatTheyAre) {
  const at::Tensor x = WithOutliers(Random({30, 23}, 3));
  at::Tensor first = Random({11, 23}, 4), second = Random({5, 23}, 5);
  first.slice(1, 3, c10::nullopt, 5).mul_(4);
  const std::vector<Threshold> cuts = {Cut(first, 1.3, 7), Cut(second, 1.6, 7)};
  const SiteFlattening flattening = MakeFlattening(4, Cut(x, 1.5, 7), cuts);
  const ColumnMap map =
      MakeColumnMap(4, flattening.act_scale, 23, flattening.channel, flattening.piece);
  const at::Tensor columns = SplitChannels(2 * x, map);
  size_t index = 0;
  for (const at::Tensor& weight : {first, second}) {
    const double threshold = static_cast<double>(flattening.weight_scales[index++]) * 7;
    const at::Tensor split = SplitWeight(weight, flattening.channel, flattening.weight_piece,
                                         flattening.weight_pieces, threshold);
    // The rounding of the scale to float may leave a hair beyond the threshold.
    EXPECT_LE(split.abs().max().item<double>(), threshold * (1 + 1e-5));
    const at::Tensor error = at::matmul(columns, split.t()) - at::matmul(2 * x, weight.t());
    EXPECT_LT(error.abs().max().item<double>(), 1e-11);
  }
}

// Of the extra columns in the order that the packed format wants, none twice without
// cause.
TEST(Columns, EveryPairOfPiecesHasOneColumn) {
  const Threshold act = {1.0, at::tensor({1, 2, 3}, at::kLong)};
  const Threshold weight = {1.0, at::tensor({2, 1, 2}, at::kLong)};
  const SiteFlattening f = MakeFlattening(4, act, {weight});
  const auto same = [](const at::Tensor& tensor, const std::vector<int64_t>& values) {
    return at::equal(tensor, at::tensor(values, at::kLong));
  };
  EXPECT_TRUE(same(f.channel, {0, 1, 2, 0, 1, 2, 2, 2, 2, 2}));
  EXPECT_TRUE(same(f.piece, {0, 0, 0, 0, 1, 0, 1, 1, 2, 2}));
  EXPECT_TRUE(same(f.weight_piece, {0, 0, 0, 1, 0, 1, 0, 1, 0, 1}));
}

TEST(ChooseThreshold, SpendsItsBudgetOnTheWidestChannels) {
  at::Tensor maxima = at::ones({100}, at::kDouble);
  maxima[7] = 8;
  // No growth: the largest.
  EXPECT_NEAR(ChooseThreshold(maxima, 1.0, 7).value, 8, 1e-4);
  // Seven pieces more cut the outlier down to the others.
  const Threshold cut = ChooseThreshold(maxima, 1.07, 7);
  EXPECT_NEAR(cut.value, 1, 1e-4);
  EXPECT_EQ(cut.pieces.sum().item<int64_t>(), 107);
  EXPECT_EQ(cut.pieces[7].item<int64_t>(), 8);
  // One less than that does not.
  EXPECT_GT(ChooseThreshold(maxima, 1.06, 7).value, 1.1);
}

TEST(ChooseThreshold, KeepsItsBudgetAndFallsWithIt) {
  const at::Tensor maxima = WithOutliers(Random({1, 333}, 6)).abs()[0];
  double last = 1e9;
  for (const double growth : {1.0, 1.1, 1.5, 2.0, 4.0}) {
    const Threshold cut = ChooseThreshold(maxima, growth, 7);
    EXPECT_LE(cut.pieces.sum().item<double>(), growth * 333);
    EXPECT_LT(cut.value, last);
    EXPECT_TRUE((cut.pieces.to(at::kDouble) * cut.value >= maxima).all().item<bool>());
    last = cut.value;
  }
}

TEST(ChooseThreshold, WidthsThatNoGridHolds) {
  at::Tensor maxima = at::zeros({50}, at::kDouble);
  EXPECT_EQ(ChooseThreshold(maxima, 1.2, 7).pieces.sum().item<int64_t>(), 50);
  maxima[0] = 1;
  // One channel alone would take all the budget, but no more pieces than 16 bits hold.
  const Threshold cut = ChooseThreshold(maxima, 1e6, 127);
  EXPECT_LE(cut.pieces[0].item<int64_t>() * 127, 32767);
}

}  // namespace
}  // namespace flatquant::compress
