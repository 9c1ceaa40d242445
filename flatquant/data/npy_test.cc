#include "flatquant/data/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "flatquant/base/error.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using std::string_literals::operator""s;

std::filesystem::path Write(const std::string& bytes) {
  const auto path = testing::ScratchFolder() / "ids.npy";
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

// A .npy file of version 1 with this header text and data.
std::string Npy(const std::string& header, const std::string& data) {
  std::string bytes = "\x93NUMPY\x01\x00"s;
  bytes += static_cast<char>(header.size() & 0xff);
  bytes += static_cast<char>(header.size() >> 8);
  return bytes + header + data;
}

std::string Header(const std::string& descr, const std::string& shape) {
  return "{'descr': '" + descr + "', 'fortran_order': False, 'shape': " + shape + ", }   \n";
}

std::string Message(const std::string& bytes) {
  try {
    ReadNpyIds(Write(bytes));
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(ReadNpyIds, EveryIntegerType) {
  const auto ids = [](const std::string& descr, const std::string& data) {
    return ReadNpyIds(Write(Npy(Header(descr, "(2,)"), data))).ids;
  };
  EXPECT_THAT(ids("|u1", "\x07\xff"s), ElementsAre(7, 255));
  EXPECT_THAT(ids("|i1", "\x07\x7f"s), ElementsAre(7, 127));
  EXPECT_THAT(ids("<u2", "\x01\x02\xff\xff"s), ElementsAre(513, 65535));
  EXPECT_THAT(ids(">i2", "\x01\x02\x00\xff"s), ElementsAre(258, 255));
  EXPECT_THAT(ids("<i4", "\x01\x00\x00\x00\xff\xff\xff\x7f"s), ElementsAre(1, 2147483647));
  EXPECT_THAT(ids(">u4", "\x00\x00\x01\x00\x00\x00\x00\x09"s), ElementsAre(256, 9));
  EXPECT_THAT(ids("<i8", "\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0"s), ElementsAre(5, 6));
}

TEST(ReadNpyIds, ShapesAndVersions) {
  const NpyIds flat = ReadNpyIds(Write(Npy(Header("|u1", "(3,)"), "abc")));
  EXPECT_FALSE(flat.two_dimensional);
  EXPECT_EQ(flat.rows, 1);
  EXPECT_EQ(flat.cols, 3);
  const NpyIds rows = ReadNpyIds(Write(Npy(Header("|u1", "(3, 2)"), "abcdef")));
  EXPECT_TRUE(rows.two_dimensional);
  EXPECT_EQ(rows.rows, 3);
  EXPECT_EQ(rows.cols, 2);
  EXPECT_EQ(rows.ids.size(), 6u);
  // Version 2 has a header length of four bytes.
  const std::string header = Header("|u1", "(1,)");
  const std::string version2 =
      "\x93NUMPY\x02\x00"s + static_cast<char>(header.size()) + "\0\0\0"s + header + "a";
  EXPECT_THAT(ReadNpyIds(Write(version2)).ids, ElementsAre('a'));
  // Fortran order of one dimension is C order.
  EXPECT_THAT(ReadNpyIds(Write(Npy("{'descr':'|u1','fortran_order':True,'shape':(1,)}", "a"))).ids,
              ElementsAre('a'));
}

TEST(ReadNpyIds, CraftedHeadersAreRefused) {
  EXPECT_THAT(Message(""), HasSubstr("not a .npy file"));
  EXPECT_THAT(Message("\x93NUMPY"), HasSubstr("not a .npy file"));
  EXPECT_THAT(Message("\x93NUMPY\x01\x00\x10"s), HasSubstr("truncated in its header"));
  EXPECT_THAT(Message("\x93NUMPY\x01\x00\xff\xff{"s), HasSubstr("truncated in its header"));
  EXPECT_THAT(Message("\x93NUMPY\x02\x00\xff\xff\xff\xff{"s), HasSubstr("truncated"));
  EXPECT_THAT(Message("\x93NUMPY\x09\x00\x01\x00{"s), HasSubstr("unknown .npy version 9"));
  EXPECT_THAT(Message("PK\x03\x04 and so on"s), HasSubstr("is a .npz archive"));
  EXPECT_THAT(Message(Npy("", "")), HasSubstr("'{' expected"));
  EXPECT_THAT(Message(Npy("{'descr': '<i4'", "")), HasSubstr("'}' expected"));
  EXPECT_THAT(Message(Npy("{'descr': '<i4", "")), HasSubstr("endless string"));
  EXPECT_THAT(Message(Npy("{'descr': '<i4'}", "")), HasSubstr("without descr"));
  EXPECT_THAT(Message(Npy("{'descr': '<i4', 'descr': '<i4'}", "")), HasSubstr("repeated"));
  EXPECT_THAT(Message(Npy("{'fortran_order': 1}", "")), HasSubstr("True or False"));
  EXPECT_THAT(Message(Npy("{'descr': [('a', '<i4')]}", "")), HasSubstr("record types"));
  EXPECT_THAT(Message(Npy("{'shape': (1,}", "")), HasSubstr("malformed shape"));
  EXPECT_THAT(Message(Npy("{'shape': (-1,)}", "")), HasSubstr("malformed shape"));
  EXPECT_THAT(Message(Npy("{'shape': (99999999999999999999,)}", "")), HasSubstr("malformed shape"));
  EXPECT_THAT(Message(Npy(Header("|u1", "(1,)") + "x", "a")), HasSubstr("after its header"));
}

TEST(ReadNpyIds, TypesShapesAndSizesAreChecked) {
  EXPECT_THAT(Message(Npy(Header("<f4", "(1,)"), "abcd")), HasSubstr("'<f4', not integers"));
  EXPECT_THAT(Message(Npy(Header("<i3", "(1,)"), "abc")), HasSubstr("not integers"));
  EXPECT_THAT(Message(Npy(Header("|i4", "(1,)"), "abcd")), HasSubstr("not integers"));
  EXPECT_THAT(Message(Npy(Header("|u1", "()"), "a")), HasSubstr("0 dimensions"));
  EXPECT_THAT(Message(Npy(Header("|u1", "(1, 1, 1)"), "a")), HasSubstr("3 dimensions"));
  EXPECT_THAT(Message(Npy(Header("<i4", "(2,)"), "abcd")), HasSubstr("4 bytes of data"));
  EXPECT_THAT(Message(Npy(Header("|u1", "(2,)"), "abc")), HasSubstr("3 bytes of data"));
  EXPECT_THAT(Message(Npy(Header("<i8", "(4294967296, 4294967296)"), "abc")), HasSubstr("3 bytes"));
  EXPECT_THAT(Message(Npy(Header("<i8", "(2305843009213693952,)"), "")), HasSubstr("0 bytes"));
  EXPECT_THAT(Message(Npy("{'descr':'|u1','fortran_order':True,'shape':(1,1)}", "a")),
              HasSubstr("Fortran order"));
}

TEST(ReadNpyIds, ValuesThatAreNoTokenIds) {
  EXPECT_THAT(Message(Npy(Header("|i1", "(2,)"), "\x01\xff"s)),
              HasSubstr("element 1 is -1, which is no token id"));
  EXPECT_THAT(Message(Npy(Header("<u4", "(1,)"), "\0\0\0\x80"s)), HasSubstr("[data.id_range]"));
  EXPECT_THAT(Message(Npy(Header("<u8", "(1,)"), "\xff\xff\xff\xff\xff\xff\xff\xff"s)),
              HasSubstr("[data.id_range]"));
}

TEST(ReadNpyIds, CalibrationWindowsOfTheReference) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/calib_ids_128x2048.npy");
  const NpyIds ids = ReadNpyIds(testing::SharedPath("golden/wikillama-43m/calib_ids_128x2048.npy"));
  EXPECT_TRUE(ids.two_dimensional);
  EXPECT_EQ(ids.rows, 128);
  EXPECT_EQ(ids.cols, 2048);
}

}  // namespace
}  // namespace flatquant
