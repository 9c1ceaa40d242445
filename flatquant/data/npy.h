#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace flatquant {

// A 1-D or 2-D NumPy array of integers as token ids.
struct NpyIds {
  bool two_dimensional = false;
  int64_t rows = 1;  // 1 for a 1-D array
  int64_t cols = 0;
  std::vector<int32_t> ids;  // [rows, cols]
};

// Reads a .npy file (versions 1 to 3, signed or unsigned integers of 1 to 8
// bytes in either byte order, C order). Errors: file.*; data.bad_npy, which says
// what is wrong with the header or the size; data.id_range for a value that no
// token id can have (negative, or beyond 31 bits).
NpyIds ReadNpyIds(const std::filesystem::path& path);

}  // namespace flatquant
