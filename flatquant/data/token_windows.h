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

  // "kind:path,kind:path". A comma separates only where a kind follows it, so
  // paths may have commas. Errors: data.bad_spec.
  static std::vector<DataSpec> ParseList(std::string_view text);

  std::string KindName() const;
};

// Fixed-length windows of token ids, one after another: [count, length].
struct TokenWindows {
  int64_t count = 0;
  int64_t length = 0;
  std::vector<int32_t> ids;

  const int32_t* window(int64_t i) const { return ids.data() + i * length; }

  // "fnv1a64:" and 16 hexadecimal digits that identify dimensions and ids: what
  // a report records to say which data it used.
  std::string Fingerprint() const;
};

// The whole source as the field evaluates it (the rules per kind are in the
// room's README), BOS first where the tokenizer adds one.
// Errors: data.empty, data.bad_json, data.bad_npy, data.bad_compression, file.*.
std::vector<int32_t> LoadTokens(const DataSpec& spec, const Tokenizer& tokenizer);

// Consecutive windows for evaluation: the incomplete last one is dropped, and
// c4 gives at most 256 windows of its first 1,100 documents, as the field does. limit > 0 keeps the
// first `limit`. A 2-D ids file keeps its rows, which must be `length` long. Errors: LoadTokens's;
// data.too_short when not one window fills; data.row_length when a 2-D file's rows have another
// length; data.id_range when an id is not below vocab_size.
TokenWindows EvaluationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                               int64_t limit, int64_t vocab_size);

// `count` windows for calibration, each starting at a token drawn uniformly from
// all places where a whole window fits (they may overlap); the same seed gives
// the same windows everywhere. A 2-D ids file gives its first `count` rows
// unchanged. Errors: EvaluationWindows's; data.too_short also when a 2-D file has
// fewer than `count` rows.
TokenWindows CalibrationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                                int64_t count, uint64_t seed, int64_t vocab_size);

}  // namespace flatquant
