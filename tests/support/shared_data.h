#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string_view>

namespace flatquant::testing {

// A file of the project, by its path from the root: SourcePath("models/demo-7m").
std::filesystem::path SourcePath(std::string_view relative);

// A file of the folder of inputs and golden figures that may lie beside the
// checkout (or where FLATQUANT_SHARED points). May not exist.
std::filesystem::path SharedPath(std::string_view relative);

// A fresh empty folder under the system's temporary one, removed at the end of
// the program.
std::filesystem::path ScratchFolder();

}  // namespace flatquant::testing

// Skips the current test, saying so, where an input of SharedPath is absent.
#define FLATQUANT_NEEDS_SHARED(relative)                                    \
  if (!std::filesystem::exists(::flatquant::testing::SharedPath(relative))) \
  GTEST_SKIP() << "needs the shared input " << (relative)
