#include "flatquant/checkpoint/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "flatquant/base/file.h"
#include "flatquant/base/tensor.h"
#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/checkpoint/safetensors.h"

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using testing::ErrorName;

std::vector<std::pair<std::string, TensorView>> Mixed() {
  static const Tensor bytes = Tensor::Own(DType::kU8, {3}, std::vector<uint8_t>{1, 2, 3});
  static const Tensor halves = Tensor::Own(DType::kBF16, {1, 2}, std::vector<uint16_t>{4, 5});
  static const Tensor floats = Tensor::Floats({2}, {0.5f, -1.5f});
  static const Tensor longs = Tensor::Own(DType::kI64, {1}, std::vector<int64_t>{-7});
  static const Tensor scalar = Tensor::Floats({}, {9.0f});
  return {{"bytes", bytes}, {"zeta", floats},  {"halves", halves},
          {"longs", longs}, {"alpha", scalar}, {"none", TensorView{DType::kF16, {0, 4}, nullptr}}};
}

TEST(SafetensorsWriterTest, RoundTrip) {
  const auto path = testing::ScratchFolder() / "out.safetensors";
  const auto tensors = Mixed();
  WriteSafetensors(path, tensors, {{"format", "pt"}, {"quote", "\"\n\xc3\xa9"}});
  const Checkpoint read = Checkpoint::Open(path);
  EXPECT_EQ(read.tensors().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const Tensor* found = read.Find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->dtype, tensor.dtype);
    EXPECT_EQ(found->shape, tensor.shape);
    if (tensor.bytes() > 0) {
      EXPECT_EQ(std::memcmp(found->data, tensor.data, tensor.bytes()), 0) << name;
    }
  }
  EXPECT_EQ(read.metadata().at("quote"), "\"\n\xc3\xa9");
}

TEST(SafetensorsWriterTest, EveryTensorIsAligned) {
  const auto path = testing::ScratchFolder() / "out.safetensors";
  WriteSafetensors(path, Mixed());
  const std::string bytes = ReadFile(path);
  const SafetensorsLayout layout = ParseSafetensors(std::as_bytes(std::span(bytes)), "out");
  std::vector<std::string> names;
  for (const auto& entry : layout.entries) {
    EXPECT_EQ(entry.begin % DTypeSize(entry.dtype), 0u) << entry.name;
    names.push_back(entry.name);
  }
  // By falling element size, then by name; the empty one shares its place.
  EXPECT_THAT(names, ElementsAre("longs", "alpha", "zeta", "halves", "none", "bytes"));
}

TEST(SafetensorsWriterTest, OrderOfArgumentsDoesNotMatter) {
  const auto folder = testing::ScratchFolder();
  auto tensors = Mixed();
  WriteSafetensors(folder / "a", tensors);
  std::reverse(tensors.begin(), tensors.end());
  WriteSafetensors(folder / "b", tensors);
  EXPECT_EQ(ReadFile(folder / "a"), ReadFile(folder / "b"));
}

TEST(SafetensorsWriterTest, NoTensors) {
  const auto path = testing::ScratchFolder() / "out.safetensors";
  WriteSafetensors(path, {});
  EXPECT_TRUE(Checkpoint::Open(path).tensors().empty());
}

TEST(SafetensorsWriterTest, BadNames) {
  const auto path = testing::ScratchFolder() / "out.safetensors";
  const Tensor one = Tensor::Floats({1}, {1.0f});
  for (const std::string& name :
       {std::string(), std::string("__metadata__"), std::string("\xff"), std::string("a\0b", 3)}) {
    EXPECT_EQ(ErrorName([&] { WriteSafetensors(path, {{name, one}}); }), "safetensors.bad_name");
  }
  EXPECT_EQ(ErrorName([&] {
              WriteSafetensors(path, {{"a", one}, {"a", one}});
            }),
            "safetensors.bad_name");
  EXPECT_EQ(ErrorName([&] {
              WriteSafetensors(path, {{"a", one}}, {{"k", "\xff"}});
            }),
            "safetensors.bad_name");
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SafetensorsWriterTest, FailureLeavesTheOldFile) {
  const auto folder = testing::ScratchFolder();
  const auto path = folder / "out.safetensors";
  WriteSafetensors(path, Mixed());
  const std::string before = ReadFile(path);
  const Tensor one = Tensor::Floats({1}, {1.0f});
  EXPECT_NE(ErrorName([&] { WriteSafetensors(path, {{"a", one}, {"a", one}}); }), "");
  EXPECT_EQ(ReadFile(path), before);
  EXPECT_EQ(ErrorName([&] { WriteSafetensors(folder / "no" / "out", Mixed()); }), "file.create");
}

}  // namespace
}  // namespace flatquant
