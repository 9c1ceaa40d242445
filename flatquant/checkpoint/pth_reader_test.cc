#include "flatquant/checkpoint/pth_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "flatquant/checkpoint/crafted_files_for_test.h"

namespace flatquant {
namespace {

using testing::CraftedZip;
using ::testing::ElementsAre;
using testing::ErrorMessage;
using testing::ErrorName;
using ::testing::HasSubstr;
using testing::PickleText;
using testing::PthZip;

PthFile Open(const CraftedZip& zip, const PthLimits& limits = {}) {
  const auto path = testing::ScratchFolder() / "crafted.pth";
  testing::WriteBytes(path, zip.Bytes());
  return PthFile::Open(path, limits);
}

std::string ErrorOf(const CraftedZip& zip, const PthLimits& limits = {}) {
  return ErrorName([&] { Open(zip, limits); });
}

// The floats 0, 1, 2, ... as a storage's bytes.
std::string Counting(int n) {
  std::string bytes;
  for (int i = 0; i < n; ++i) {
    const float value = static_cast<float>(i);
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return bytes;
}

// A file that is one tensor over a storage of `elements` counting floats.
CraftedZip OneTensor(int elements, int32_t offset, const std::vector<int32_t>& shape,
                     const std::vector<int32_t>& strides) {
  const PickleText pickle =
      PickleText().Tensor("FloatStorage", "0", elements, offset, shape, strides).Raw(".");
  return PthZip(pickle.text, {Counting(elements)});
}

std::vector<float> Values(const CraftedZip& zip) { return Open(zip).Tensors().at("").ToFloat(); }

TEST(PthTest, ContiguousTensorsAreViewsOfTheFile) {
  EXPECT_THAT(Values(OneTensor(6, 0, {2, 3}, {3, 1})), ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_THAT(Values(OneTensor(6, 2, {2}, {1})), ElementsAre(2, 3));
  EXPECT_THAT(Values(OneTensor(6, 5, {}, {})), ElementsAre(5));
  EXPECT_THAT(Values(OneTensor(6, 0, {1, 6}, {77, 1})), ElementsAre(0, 1, 2, 3, 4, 5));
  const PthLimits nothing{0};
  EXPECT_EQ(ErrorOf(OneTensor(6, 0, {2, 3}, {3, 1}), nothing), "");
}

TEST(PthTest, StridesBecomeDense) {
  EXPECT_THAT(Values(OneTensor(6, 0, {3, 2}, {1, 3})), ElementsAre(0, 3, 1, 4, 2, 5));
  EXPECT_THAT(Values(OneTensor(9, 1, {2, 2}, {4, 2})), ElementsAre(1, 3, 5, 7));
  EXPECT_THAT(Values(OneTensor(2, 1, {3}, {0})), ElementsAre(1, 1, 1));
  EXPECT_THAT(Values(OneTensor(8, 0, {2, 2, 2}, {1, 2, 4})), ElementsAre(0, 4, 2, 6, 1, 5, 3, 7));
  EXPECT_EQ(ErrorOf(OneTensor(6, 0, {3, 2}, {1, 3}), PthLimits{24}), "");
  EXPECT_EQ(ErrorOf(OneTensor(6, 0, {3, 2}, {1, 3}), PthLimits{23}), "pth.too_large");
}

TEST(PthTest, EmptyTensors) {
  const PthFile file = Open(OneTensor(4, 4, {0, 3}, {3, 1}));
  const Tensor tensor = file.Tensors().at("");
  EXPECT_TRUE(tensor.defined());
  EXPECT_EQ(tensor.shape, (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(tensor.elements(), 0u);
}

TEST(PthTest, TensorsOutsideTheirStorage) {
  constexpr int32_t kHuge = 2'147'483'647;
  EXPECT_EQ(ErrorOf(OneTensor(4, 0, {5}, {1})), "pth.bad_tensor");
  EXPECT_EQ(ErrorOf(OneTensor(4, 4, {1}, {1})), "pth.bad_tensor");
  EXPECT_EQ(ErrorOf(OneTensor(4, 1, {2, 2}, {2, 1})), "pth.bad_tensor");
  EXPECT_EQ(ErrorOf(OneTensor(4, 0, {2}, {4})), "pth.bad_tensor");
  EXPECT_EQ(ErrorOf(OneTensor(4, kHuge, {1}, {1})), "pth.bad_tensor");
  // Products beyond 64 bits.
  EXPECT_EQ(ErrorOf(OneTensor(4, 0, {kHuge, kHuge, kHuge}, {0, 0, 0})), "pth.bad_tensor");
  EXPECT_EQ(ErrorOf(OneTensor(4, 0, {kHuge, kHuge}, {kHuge, kHuge})), "pth.bad_tensor");
  // One element seen 2^62 times: within bounds, beyond memory.
  EXPECT_EQ(ErrorOf(OneTensor(4, 0, {1 << 30, 1 << 30}, {0, 0})), "pth.too_large");
}

TEST(PthTest, StorageOfAnotherSize) {
  const std::string pickle = PickleText().Tensor("FloatStorage", "0", 4, 0, {1}, {1}).Raw(".").text;
  EXPECT_EQ(ErrorOf(PthZip(pickle, {Counting(4)})), "");
  EXPECT_EQ(ErrorOf(PthZip(pickle, {Counting(3)})), "pth.bad_storage");
  EXPECT_EQ(ErrorOf(PthZip(pickle, {Counting(5)})), "pth.bad_storage");
  EXPECT_EQ(ErrorOf(PthZip(pickle, {""})), "pth.bad_storage");
}

TEST(PthTest, MissingEntries) {
  const std::string pickle = PickleText().Tensor("FloatStorage", "7", 4, 0, {1}, {1}).Raw(".").text;
  EXPECT_EQ(ErrorOf(PthZip(pickle, {Counting(4)})), "pth.missing_entry");
  EXPECT_EQ(ErrorOf(CraftedZip{{{"data.pkl", "\x80\2N."}}}), "pth.missing_entry");
  EXPECT_EQ(ErrorOf(CraftedZip{{{"a/b/data.pkl", "\x80\2N."}}}), "pth.missing_entry");
  EXPECT_EQ(ErrorOf(CraftedZip{}), "pth.missing_entry");
}

TEST(PthTest, StorageKeysNameEntriesAndNothingElse) {
  const std::string pickle =
      PickleText().Tensor("ByteStorage", "../data.pkl", 4, 0, {1}, {1}).Raw(".").text;
  EXPECT_EQ(ErrorOf(PthZip(pickle)), "pth.missing_entry");
}

TEST(PthTest, TwoPickles) {
  CraftedZip zip = PthZip("\x80\2N.");
  zip.entries.push_back({"other/data.pkl", "\x80\2N."});
  EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
}

TEST(PthTest, ByteOrder) {
  CraftedZip zip = PthZip("\x80\2N.");
  EXPECT_EQ(ErrorOf(zip), "");
  zip.entries[1].data = "big";
  EXPECT_EQ(ErrorOf(zip), "pth.byte_order");
  zip.entries.erase(zip.entries.begin() + 1);
  EXPECT_EQ(ErrorOf(zip), "");
}

TEST(PthTest, DeflatedEntriesAreLimited) {
  CraftedZip zip = OneTensor(1000, 0, {1000}, {1});
  for (auto& entry : zip.entries) entry.deflated = true;
  EXPECT_EQ(Open(zip).Tensors().at("").ToFloat()[999], 999.0f);
  EXPECT_EQ(ErrorOf(zip, PthLimits{4000}), "pth.too_large");  // the pickle counts as well
}

TEST(PthTest, DamagedStoragesAreNoticed) {
  CraftedZip zip = OneTensor(4, 0, {4}, {1});
  zip.entries[2].crc_error = 1;
  EXPECT_EQ(ErrorOf(zip), "pth.crc_mismatch");
}

TEST(PthTest, Flattening) {
  // {0: {"q": t0, "meta": 5}, "list": [t1, (t2,)]}
  PickleText pickle;
  const auto tensor = [&](int32_t offset) -> PickleText& {
    return pickle.Tensor("FloatStorage", "0", 3, offset, {1}, {1});
  };
  pickle.Raw("}(").Int(0).Raw("}(").Text("q");
  tensor(0).Text("meta").Raw("K\5u").Text("list").Raw("](");
  tensor(1);
  tensor(2).Raw("\x85").Raw("eu.");
  const PthFile file = Open(PthZip(pickle.text, {Counting(3)}));
  std::vector<std::string> names;
  for (const auto& [name, value] : file.Tensors()) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("0.q", "list.0", "list.1.0"));
  EXPECT_EQ(file.Tensors().at("list.1.0").ToFloat()[0], 2.0f);
  EXPECT_EQ(file.root().As<PthValue::Dict>()->items.size(), 2u);
}

TEST(PthTest, NamesThatMeetAreRefused) {
  PickleText pickle;
  pickle.Raw("}(").Text("a.b").Tensor("FloatStorage", "0", 1, 0, {1}, {1});
  pickle.Text("a").Raw("}").Text("b").Tensor("FloatStorage", "0", 1, 0, {1}, {1}).Raw("su.");
  const PthFile file = Open(PthZip(pickle.text, {Counting(1)}));
  EXPECT_EQ(ErrorName([&] { file.Tensors(); }), "pth.duplicate_name");
}

TEST(PthTest, TensorsOutliveTheFile) {
  std::map<std::string, Tensor, std::less<>> tensors;
  { tensors = Open(OneTensor(6, 0, {2, 3}, {3, 1})).Tensors(); }
  EXPECT_EQ(tensors.at("").ToFloat()[5], 5.0f);
}

TEST(PthTest, NotAZipFile) {
  const auto path = testing::SourcePath("models/demo-7m/model.safetensors");
  const std::string message = ErrorMessage([&] { PthFile::Open(path); });
  EXPECT_THAT(message, HasSubstr("model.safetensors"));
  EXPECT_THAT(message, HasSubstr("[pth.not_zip]"));
  EXPECT_EQ(ErrorName([] { PthFile::Open("no/such.pth"); }), "file.open");
}

// Row-major product a b^T of square matrices.
std::vector<float> TimesTranspose(const Tensor& a, const Tensor& b) {
  const auto n = static_cast<size_t>(a.shape.at(0));
  const std::vector<float> x = a.ToFloat();
  const std::vector<float> y = b.ToFloat();
  std::vector<float> product(n * n);
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      float sum = 0;
      for (size_t k = 0; k < n; ++k) sum += x[i * n + k] * y[j * n + k];
      product[i * n + j] = sum;
    }
  }
  return product;
}

float DistanceFromIdentity(const std::vector<float>& matrix) {
  const auto n = static_cast<size_t>(std::lround(std::sqrt(matrix.size())));
  float worst = 0;
  for (size_t i = 0; i < matrix.size(); ++i) {
    worst = std::max(worst, std::abs(matrix[i] - (i % (n + 1) == 0 ? 1.0f : 0.0f)));
  }
  return worst;
}

// The pairs that the original implementation stores are inverse transposes of
// one another, which holds only if every element is where it belongs.
TEST(PthTest, LearnedMatricesOfTheOriginal) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/flat_matrices.pth");
  const PthFile file = PthFile::Open(testing::SharedPath("golden/wikillama-43m/flat_matrices.pth"));
  const auto tensors = file.Tensors();
  EXPECT_EQ(tensors.size(), 636u);
  const auto* layers = file.root().As<PthValue::Dict>();
  ASSERT_EQ(layers->items.size(), 12u);
  EXPECT_EQ(*layers->items[11].first->As<int64_t>(), 11);
  int pairs = 0;
  for (const auto& [name, matrix] : tensors) {
    for (const char* suffix : {"_inv", "_inv_t"}) {
      const auto inverse = tensors.find(name + suffix);
      if (inverse == tensors.end()) continue;
      ++pairs;
      // Elements up to about 3, sums of at most 86 products in float32.
      EXPECT_LT(DistanceFromIdentity(TimesTranspose(matrix, inverse->second)), 1e-4f) << name;
    }
  }
  // Per layer: left and right of ln, up_gate and down; o, k and v.
  EXPECT_EQ(pairs, 12 * 9);
}

TEST(PthTest, LearnedParametersOfTheOriginal) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/flat_parameters.pth");
  const auto tensors =
      PthFile::Open(testing::SharedPath("golden/wikillama-43m/flat_parameters.pth")).Tensors();
  EXPECT_EQ(tensors.size(), 744u);
  const Tensor& diagonal = tensors.at("3.self_attn.ln_trans.diag_scale");
  EXPECT_EQ(diagonal.ShapeString(), "[512]");
  EXPECT_EQ(diagonal.dtype, DType::kF32);
  const Tensor& u = tensors.at("11.mlp.down_trans.linear_u_right.parametrizations.weight.original");
  EXPECT_EQ(u.ShapeString(), "[86, 86]");
  for (const auto& [name, tensor] : tensors) {
    for (float value : tensor.ToFloat()) ASSERT_TRUE(std::isfinite(value)) << name;
  }
}

}  // namespace
}  // namespace flatquant
