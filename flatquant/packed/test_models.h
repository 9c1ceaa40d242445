#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/random_model.h"
#include "tests/support/shared_data.h"

// What the tests of this room share.
namespace flatquant::packed_test {

// Two small blocks with grouped heads; no width is square, ffn 44 = 4 x 11, and
// hidden 24 = 4 x 6 differs from q's width of 32.
inline ModelConfig SmallConfig() {
  ModelConfig config;
  config.hidden = 24;
  config.ffn = 44;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.vocab = 20;
  config.max_positions = 64;
  config.eos = {2};
  return config;
}

inline void WriteFile(const std::filesystem::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  ASSERT_TRUE(file.good()) << path;
}

inline std::string FileText(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// A folder with the config.json that WritePackedModel wants of the source.
inline std::filesystem::path SourceFolder(const ModelConfig& config) {
  const std::filesystem::path folder = testing::ScratchFolder();
  WriteFile(folder / "config.json", ConfigJson(config));
  return folder;
}

// The names in a folder, sorted.
inline std::vector<std::string> Names(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

// Runs body and expects an Error of this name; returns its message.
template <typename Body>
std::string ExpectError(const std::string& name, const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), name) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error, wanted " << name;
  return {};
}

}  // namespace flatquant::packed_test
