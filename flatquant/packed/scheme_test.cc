#include "flatquant/packed/scheme.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

TEST(Scheme, ReadsTheDocumentedForms) {
  EXPECT_EQ(Scheme::Parse("w4a4kv4"), (Scheme{4, 4, 4, 4}));
  EXPECT_EQ(Scheme::Parse("w4a16"), (Scheme{4, 16, 16, 16}));
  EXPECT_EQ(Scheme::Parse("w8a8"), (Scheme{8, 8, 16, 16}));
  EXPECT_EQ(Scheme::Parse("w4a8k8v4"), (Scheme{4, 8, 8, 4}));
  EXPECT_EQ(Scheme::Parse("w16a16kv2"), (Scheme{16, 16, 2, 2}));
  EXPECT_EQ(Scheme::Parse("W4A4KV4"), (Scheme{4, 4, 4, 4}));
  EXPECT_EQ(Scheme::Parse("w4a4k4v4"), Scheme::Parse("w4a4kv4"));
  EXPECT_EQ(Scheme::Parse("w4a4kv16"), Scheme::Parse("w4a4"));
}

TEST(Scheme, NamesAreShortestAndReadBack) {
  EXPECT_EQ((Scheme{4, 4, 4, 4}).Name(), "w4a4kv4");
  EXPECT_EQ((Scheme{4, 16, 16, 16}).Name(), "w4a16");
  EXPECT_EQ((Scheme{4, 8, 8, 4}).Name(), "w4a8k8v4");
  EXPECT_EQ((Scheme{4, 8, 16, 4}).Name(), "w4a8k16v4");
  const int all[] = {2, 3, 4, 5, 6, 7, 8, 16};
  for (int w : all) {
    for (int a : all) {
      for (int k : all) {
        for (int v : all) {
          const Scheme scheme{w, a, k, v};
          EXPECT_EQ(Scheme::Parse(scheme.Name()), scheme) << scheme.Name();
        }
      }
    }
  }
}

TEST(Scheme, RefusesEverythingElseAndSaysTheGrammar) {
  for (const char* text :
       {"",         "w",       "w4",       "a4",        "w4a",
        "w1a4",     "w9a4",    "w4a4k4",   "w4a4v4",    "w4a4kv",
        "w4a4kv4x", "w04a4",   "w4a4kv4 ", " w4a4",     "w4a4kvv4",
        "w4a4k4v",  "w16a15",  "w-4a4",    "w4a4kv160", "w99999999999999999999a4",
        "4a4",      "w4a4v4k4"}) {
    try {
      Scheme::Parse(text);
      ADD_FAILURE() << "'" << text << "' was read";
    } catch (const Error& error) {
      EXPECT_EQ(error.name(), "scheme.bad") << text;
      EXPECT_THAT(error.what(), testing::HasSubstr("kv<bits> or k<bits>v<bits>"));
    }
  }
}

}  // namespace
}  // namespace flatquant
