#include "flatquant/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "flatquant/checkpoint/crafted_files_for_test.h"

namespace flatquant {
namespace {

using testing::ErrorMessage;
using testing::ErrorName;
using ::testing::HasSubstr;
using testing::Little;
using testing::SafetensorsBytes;

SafetensorsLayout Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file)), "crafted.safetensors");
}

// The name of the error that a file with this header and this much data gives.
std::string ErrorOf(std::string_view header, size_t data_bytes) {
  return ErrorName([&] { Parse(SafetensorsBytes(header, data_bytes)); });
}

// The header of one tensor "t".
std::string One(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"t":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets +
         "}}";
}

TEST(SafetensorsTest, ReadsAFile) {
  const std::string header = R"({"b":{"data_offsets":[8,14],"shape":[3],"dtype":"BF16"},)"
                             R"("__metadata__":{"format":"pt","note":""},)"
                             R"("a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},)"
                             R"("empty":{"dtype":"I64","shape":[0,7],"data_offsets":[8,8]},)"
                             R"("scalar":{"dtype":"U8","shape":[],"data_offsets":[14,15]}}   )";
  const SafetensorsLayout layout = Parse(SafetensorsBytes(header, 15));
  ASSERT_EQ(layout.entries.size(), 4u);
  EXPECT_EQ(layout.entries[0].name, "a");
  EXPECT_EQ(layout.entries[0].dtype, DType::kF32);
  EXPECT_EQ(layout.entries[0].shape, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(layout.entries[0].begin, 8 + header.size());
  EXPECT_EQ(layout.entries[0].end, 16 + header.size());
  EXPECT_EQ(layout.entries[1].name, "empty");
  EXPECT_EQ(layout.entries[2].name, "b");
  EXPECT_EQ(layout.entries[3].name, "scalar");
  EXPECT_EQ(layout.entries[3].shape, std::vector<int64_t>{});
  EXPECT_EQ(layout.metadata.size(), 2u);
  EXPECT_EQ(layout.metadata.at("format"), "pt");
}

TEST(SafetensorsTest, EveryDType) {
  const std::pair<const char*, int> types[] = {{"F64", 8}, {"F32", 4}, {"F16", 2}, {"BF16", 2},
                                               {"I64", 8}, {"I32", 4}, {"I16", 2}, {"I8", 1},
                                               {"U8", 1},  {"BOOL", 1}};
  for (const auto& [name, size] : types) {
    const std::string header =
        One("\"" + std::string(name) + "\"", "[2]", "[0," + std::to_string(2 * size) + "]");
    const SafetensorsLayout layout = Parse(SafetensorsBytes(header, 2 * size));
    EXPECT_EQ(DTypeName(layout.entries.at(0).dtype), name);
  }
}

TEST(SafetensorsTest, NoTensors) {
  EXPECT_TRUE(Parse(SafetensorsBytes("{}", 0)).entries.empty());
  EXPECT_EQ(ErrorOf("{}", 1), "safetensors.trailing_bytes");
}

TEST(SafetensorsTest, Truncated) {
  for (size_t bytes = 0; bytes < 8; ++bytes) {
    EXPECT_EQ(ErrorName([&] { Parse(std::string(bytes, '\0')); }), "safetensors.truncated");
  }
}

TEST(SafetensorsTest, HeaderTooLarge) {
  const auto with_length = [](uint64_t length) {
    return ErrorName([&] { Parse(Little(length, 8) + "{}"); });
  };
  EXPECT_EQ(with_length(100'000'001), "safetensors.header_too_large");
  EXPECT_EQ(with_length(~uint64_t{0}), "safetensors.header_too_large");
  EXPECT_EQ(with_length(~uint64_t{0} - 7), "safetensors.header_too_large");
  EXPECT_EQ(with_length(100'000'000), "safetensors.header_truncated");
}

TEST(SafetensorsTest, HeaderTruncated) {
  EXPECT_EQ(ErrorName([&] { Parse(Little(3, 8) + "{}"); }), "safetensors.header_truncated");
}

TEST(SafetensorsTest, HeaderNotObject) {
  for (const char* header : {"", " {}", "[]", "1", "\"{}\"", "\xef\xbb\xbf{}"}) {
    EXPECT_EQ(ErrorOf(header, 0), "safetensors.header_not_object") << header;
  }
}

TEST(SafetensorsTest, HeaderNotUtf8) {
  for (const char* bytes : {"\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"}) {
    const std::string header =
        R"({"t)" + std::string(bytes) + R"(":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
    EXPECT_EQ(ErrorOf(header, 1), "safetensors.header_not_utf8") << header;
  }
}

TEST(SafetensorsTest, HeaderNotJson) {
  using std::string_literals::operator""s;
  for (const std::string& header :
       {"{"s, "{}}"s, "{} x"s, "{\"t\"}"s, "{'t':1}"s, "{\"__metadata__\":{},}"s, "{}\0"s,
        "{\"a\0\":1}"s, "{\"\\ud800\":1}"s, "{\"a\":nul}"s, "{\"a\nb\":{}}"s}) {
    EXPECT_EQ(ErrorOf(header, 0), "safetensors.header_not_json") << header;
  }
}

TEST(SafetensorsTest, DuplicateKeys) {
  const std::string entry = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_EQ(ErrorOf(R"({"t":)" + entry + R"(,"t":)" + entry + "}", 1), "safetensors.duplicate_key");
  // Two ways of writing one key.
  EXPECT_EQ(ErrorOf(R"({"t":)" + entry + R"(,"\u0074":)" + entry + "}", 1),
            "safetensors.duplicate_key");
  EXPECT_EQ(ErrorOf(R"({"t":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
            "safetensors.duplicate_key");
  EXPECT_EQ(ErrorOf(R"({"__metadata__":{"a":"1","a":"1"}})", 0), "safetensors.duplicate_key");
  EXPECT_EQ(ErrorOf(R"({"__metadata__":{},"__metadata__":{}})", 0), "safetensors.duplicate_key");
  // The same field in two tensors is no duplicate.
  EXPECT_EQ(ErrorOf(R"({"__metadata__":{"dtype":"x"},"t":)" + entry + "}", 1), "");
}

TEST(SafetensorsTest, BadMetadata) {
  for (const char* value : {"1", "null", "[]", "\"x\"", "true", R"({"a":1})", R"({"a":null})",
                            R"({"a":{}})", R"({"a":[]})", R"({"a":1.5})"}) {
    EXPECT_EQ(ErrorOf(R"({"__metadata__":)" + std::string(value) + "}", 0),
              "safetensors.bad_metadata")
        << value;
  }
}

TEST(SafetensorsTest, BadEntry) {
  for (const char* entry :
       {"1", "null", "[]", "\"F32\"", "{}", R"({"dtype":"U8","shape":[1]})",
        R"({"dtype":"U8","data_offsets":[0,1]})", R"({"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":8,"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":["U8"],"shape":[1],"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":1,"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":{},"data_offsets":[0,1]})",
        R"({"dtype":"U8","shape":[1],"data_offsets":1})",
        R"({"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]})"}) {
    EXPECT_EQ(ErrorOf(R"({"t":)" + std::string(entry) + "}", 1), "safetensors.bad_entry") << entry;
  }
}

TEST(SafetensorsTest, UnknownDType) {
  for (const char* dtype : {"F8_E4M3", "f32", "", "F32 "}) {
    EXPECT_EQ(ErrorOf(One("\"" + std::string(dtype) + "\"", "[1]", "[0,1]"), 1),
              "safetensors.unknown_dtype");
  }
}

TEST(SafetensorsTest, BadShape) {
  for (const char* shape : {"[-1]", "[1,-0]", "[1.0]", "[1e0]", "[\"1\"]", "[null]", "[true]",
                            "[[1]]", "[{}]", "[1,[", "[99999999999999999999]"}) {
    EXPECT_EQ(ErrorOf(One("\"U8\"", shape, "[0,1]"), 1), "safetensors.bad_shape") << shape;
  }
}

TEST(SafetensorsTest, ShapeOverflow) {
  for (const char* shape :
       {"[18446744073709551615]", "[9223372036854775808]", "[4294967296,4294967296]",
        "[4294967296,4294967296,0]", "[4611686018427387904]"}) {
    EXPECT_EQ(ErrorOf(One("\"F32\"", shape, "[0,0]"), 0), "safetensors.shape_overflow") << shape;
  }
}

TEST(SafetensorsTest, BadOffsets) {
  for (const char* offsets : {"[]", "[0]", "[0,1,1]", "[-1,0]", "[0.0,1]", "[\"0\",1]", "[null,1]",
                              "[0,[1]]", "[1,0]", "[0,18446744073709551616]"}) {
    EXPECT_EQ(ErrorOf(One("\"U8\"", "[1]", offsets), 1), "safetensors.bad_offsets") << offsets;
  }
}

TEST(SafetensorsTest, SizeMismatch) {
  EXPECT_EQ(ErrorOf(One("\"F32\"", "[2]", "[0,7]"), 7), "safetensors.size_mismatch");
  EXPECT_EQ(ErrorOf(One("\"F32\"", "[2]", "[0,9]"), 9), "safetensors.size_mismatch");
  EXPECT_EQ(ErrorOf(One("\"F32\"", "[0]", "[0,4]"), 4), "safetensors.size_mismatch");
  EXPECT_EQ(ErrorOf(One("\"F32\"", "[]", "[0,0]"), 0), "safetensors.size_mismatch");
}

TEST(SafetensorsTest, OutOfBounds) {
  EXPECT_EQ(ErrorOf(One("\"F32\"", "[2]", "[0,8]"), 7), "safetensors.out_of_bounds");
  EXPECT_EQ(ErrorOf(One("\"U8\"", "[1]", "[18446744073709551614,18446744073709551615]"), 1),
            "safetensors.out_of_bounds");
}

// Two tensors of four bytes, "a" and "b", at these offsets.
std::string Two(const std::string& a, const std::string& b) {
  return R"({"a":{"dtype":"F32","shape":[1],"data_offsets":)" + a +
         R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":)" + b + "}}";
}

TEST(SafetensorsTest, Overlap) {
  EXPECT_EQ(ErrorOf(Two("[0,4]", "[4,8]"), 8), "");
  EXPECT_EQ(ErrorOf(Two("[4,8]", "[0,4]"), 8), "");
  EXPECT_EQ(ErrorOf(Two("[0,4]", "[0,4]"), 8), "safetensors.overlap");
  EXPECT_EQ(ErrorOf(Two("[0,4]", "[3,7]"), 8), "safetensors.overlap");
}

TEST(SafetensorsTest, OverlapBehindALargeTensor) {
  EXPECT_EQ(ErrorOf(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},)"
                    R"("c":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})",
                    8),
            "safetensors.overlap");
}

TEST(SafetensorsTest, EmptyTensorInsideAnotherIsRefused) {
  EXPECT_EQ(ErrorOf(R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},)"
                    R"("b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})",
                    8),
            "safetensors.overlap");
}

TEST(SafetensorsTest, Hole) {
  EXPECT_EQ(ErrorOf(Two("[0,4]", "[5,9]"), 9), "safetensors.hole");
  EXPECT_EQ(ErrorOf(Two("[1,5]", "[5,9]"), 9), "safetensors.hole");
}

TEST(SafetensorsTest, TrailingBytes) {
  EXPECT_EQ(ErrorOf(Two("[0,4]", "[4,8]"), 9), "safetensors.trailing_bytes");
}

TEST(SafetensorsTest, DeepNestingNeedsNoStack) {
  const std::string deep(1'000'000, '[');
  EXPECT_EQ(ErrorOf(R"({"t":)" + deep, 0), "safetensors.bad_entry");
  EXPECT_EQ(ErrorOf(R"({"__metadata__":)" + deep, 0), "safetensors.bad_metadata");
  EXPECT_EQ(ErrorOf(One("\"U8\"", deep, "[0,0]"), 0), "safetensors.bad_shape");
}

TEST(SafetensorsTest, MessagesSayFileTensorAndWhatToDo) {
  const std::string message =
      ErrorMessage([] { Parse(SafetensorsBytes(One("\"F32\"", "[2]", "[0,8]"), 7)); });
  EXPECT_THAT(message, HasSubstr("crafted.safetensors"));
  EXPECT_THAT(message, HasSubstr("'t'"));
  EXPECT_THAT(message, HasSubstr("download it again"));
  EXPECT_THAT(message, HasSubstr("[safetensors.out_of_bounds]"));
}

TEST(SafetensorsTest, NamesCannotBreakTheMessage) {
  const std::string message = ErrorMessage([] {
    Parse(SafetensorsBytes(R"({"x\ny\u001b[31m)" + std::string(1000, 'z') + R"(":1})", 0));
  });
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.find('\x1b'), std::string::npos);
  EXPECT_LT(message.size(), 400u);
}

// No prefix and no changed byte of a good file may do more than raise an Error.
TEST(SafetensorsTest, DamagedFilesNeverCrash) {
  const std::string good = SafetensorsBytes(Two("[0,4]", "[4,8]"), 8);
  int refused = 0;
  for (size_t i = 0; i < good.size(); ++i) {
    EXPECT_NE(ErrorName([&] { Parse(good.substr(0, i)); }), "") << "prefix of " << i;
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = good;
      damaged[i] = static_cast<char>(damaged[i] ^ (1 << bit));
      if (!ErrorName([&] { Parse(damaged); }).empty()) ++refused;
    }
  }
  EXPECT_GT(refused, 700);
}

TEST(SafetensorsTest, OpenedTensorsKeepTheirFileMapped) {
  const auto path = testing::ScratchFolder() / "a.safetensors";
  testing::WriteBytes(path, SafetensorsBytes(One("\"I16\"", "[2]", "[0,4]"), 4));
  Tensor tensor;
  {
    SafetensorsFile file = OpenSafetensors(path);
    ASSERT_EQ(file.tensors.size(), 1u);
    tensor = file.tensors[0].second;
  }
  int16_t values[2];
  std::memcpy(values, tensor.data, 4);
  EXPECT_EQ(values[0], 0x0100);
  EXPECT_EQ(values[1], 0x0302);
  EXPECT_EQ(ErrorName([&] { OpenSafetensors(path.parent_path() / "none"); }), "file.open");
}

}  // namespace
}  // namespace flatquant
