#include "apps/inspect_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Tensor Zeros(std::vector<int64_t> shape) {
  size_t elements = 1;
  for (int64_t dimension : shape) elements *= static_cast<size_t>(dimension);
  return Tensor::Floats(std::move(shape), std::vector<float>(elements));
}

TEST(Ranges, JoinsNeighbours) {
  EXPECT_EQ(Ranges({}), "");
  EXPECT_EQ(Ranges({7}), "7");
  EXPECT_EQ(Ranges({0, 1, 2, 3, 5, 7, 8}), "0-3,5,7-8");
}

TEST(TensorTable, FoldsWhatDiffersOnlyInTheFirstNumber) {
  TensorMap tensors;
  for (int layer : {0, 1, 2, 10}) {
    tensors["layers." + std::to_string(layer) + ".up.weight"] = Zeros({2, 3});
  }
  tensors["layers.3.up.weight"] = Zeros({4, 3});  // another shape stands alone
  tensors["layer2.norm"] = Zeros({1000});         // a number inside a word is no index
  tensors["layer3.norm"] = Zeros({1000});
  EXPECT_THAT(TensorTable(tensors, false),
              ElementsAre("  layer2.norm                F32 [1000]        4.0 kB",
                          "  layer3.norm                F32 [1000]        4.0 kB",
                          "  layers.{0-2,10}.up.weight  F32 [2, 3] x4       96 B",
                          "  layers.3.up.weight         F32 [4, 3]          48 B"));
  EXPECT_EQ(TensorTable(tensors, true).size(), 7u);
  EXPECT_EQ(TotalElements(tensors), 4u * 6 + 12 + 2000);
  EXPECT_EQ(TotalBytes(tensors), 4 * TotalElements(tensors));
}

TEST(TensorTable, NamesThatWouldDriveATerminalArePrintedTame) {
  TensorMap tensors;
  tensors["\x1b[2J.0.w\n"] = Zeros({1});
  tensors["\x1b[2J.1.w\n"] = Zeros({1});
  const auto lines = TensorTable(tensors, false);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_THAT(lines[0], HasSubstr("?[2J.{0-1}.w?"));
}

TEST(TensorsJson, IsComplete) {
  TensorMap tensors;
  tensors["a.0"] = Zeros({2});
  tensors["a.1"] = Zeros({2});
  EXPECT_EQ(TensorsJson(tensors).dump(), R"([{"name":"a.0","dtype":"F32","shape":[2],"bytes":8},)"
                                         R"({"name":"a.1","dtype":"F32","shape":[2],"bytes":8}])");
}

}  // namespace
}  // namespace flatquant
