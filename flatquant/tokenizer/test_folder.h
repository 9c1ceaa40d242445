#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/tokenizer/tokenizer.h"
#include "tests/support/shared_data.h"

// Tokenizers made of files that a test spells out.
namespace flatquant::tokenizer::testing {

using Files = std::map<std::string, std::string>;  // name -> content
using Ids = std::vector<int32_t>;

// Writes the files into one folder, which each call empties first.
inline std::unique_ptr<Tokenizer> Open(const Files& files) {
  static const std::filesystem::path folder = flatquant::testing::ScratchFolder();
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::filesystem::remove(entry.path());
  }
  for (const auto& [name, content] : files) {
    std::ofstream(folder / name, std::ios::binary) << content;
  }
  return Tokenizer::Open(folder);
}

// The name of the error that opening gives, or "none".
inline std::string OpenError(const Files& files) {
  try {
    Open(files);
  } catch (const Error& error) {
    return error.name();
  }
  return "none";
}

}  // namespace flatquant::tokenizer::testing
