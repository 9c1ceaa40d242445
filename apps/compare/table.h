#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/eval/result.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// Widths of a model, means where blocks or sites differ: of weights over parameters, of
// activations over the multiplications that they enter, of keys and values over blocks.
// Linears of the decoder blocks; the embedding and the output projection are apart.
struct ModelBits {
  double weights = 16, acts = 16, keys = 16, values = 16;
  // The share of the multiplications whose operands both have at most 4 bits, which
  // FlattenQuant's paper reports.
  double int4_share = 0;
};
ModelBits BitsOf(const PackedModel& model);

// A line of the table.
struct TableRow {
  std::string method;
  std::string weights;
  std::string directory;
  ModelBits bits;
  uint64_t bytes = 0;                                                  // of weight files
  double quantize_seconds = std::numeric_limits<double>::quiet_NaN();  // NaN: not known
  std::string transforms_from;  // the folder whose transforms were taken over; or ""
  std::vector<EvalResult> results;
  std::string failure_name;  // of the error; "" where all went well
  std::string failure;       // its whole message
};

enum class TableFormat { kMarkdown, kCsv, kJson };

// The table: the columns of results are those of the first row, which must be complete.
std::string FormatTable(const std::vector<TableRow>& rows, TableFormat format);

nlohmann::ordered_json TableJson(const std::vector<TableRow>& rows);

}  // namespace flatquant
