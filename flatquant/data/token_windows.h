#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {

// Where text comes from: "kind:path" on the command line.
struct DataSpec {
  enum class Kind { kWikitext2, kC4, kPile, kPtb, kText, kJsonl, kIds };
  Kind kind;
  std::filesystem::path path;

  // Errors: data.bad_spec (names the kinds).
  static DataSpec Parse(std::string_view text);
  std::string KindName() const;
};

// Fixed-length windows of token ids, one after another: [count, length].
struct TokenWindows {
  int64_t count = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;

  const int32_t* window(int64_t i) const { return ids.data() + i * length; }
};

// The whole source as the field evaluates it (the rules per kind are in the
// room's README), BOS first where the tokenizer adds one.
// Errors: data.empty, data.bad_json, data.bad_npy, file.*.
std::vector<int32_t> LoadTokens(const DataSpec& spec, const Tokenizer& tokenizer);

// Consecutive windows for evaluation: the incomplete last one is dropped, and
// c4 stops after 256 windows, as the field does. limit > 0 keeps the first
// `limit`. A 2-D ids file keeps its rows, which must be `length` long.
// Errors: LoadTokens's; data.too_short when not one window fills; data.id_range
// when an id is not below vocab_size.
TokenWindows EvaluationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                               int64_t limit, int64_t vocab_size);

// `count` windows at random places for calibration; the same seed gives the same
// windows. A 2-D ids file gives its first `count` rows unchanged.
TokenWindows CalibrationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                                int64_t count, uint64_t seed, int64_t vocab_size);

}  // namespace flatquant
