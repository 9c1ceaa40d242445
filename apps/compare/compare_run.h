#pragma once

#include <string>

#include "apps/compare/row_evaluation.h"
#include "apps/compare/table.h"
#include "apps/quantize_options.h"

namespace flatquant {

// What 'flatquant compare' was asked for.
struct CompareArguments {
  std::string directory;
  std::string out;
  std::string methods;
  std::string weights = "rtn";
  QuantizeSettings settings;
  EvaluationPlan evaluation;
  TableFormat format = TableFormat::kMarkdown;
  std::string json;
};

// Makes and measures every row and prints the table. The output folder keeps, per row,
// the packed model FOLDER, its record FOLDER.json and, while it is being worked on,
// FOLDER.job and FOLDER.windows; those of the unquantized model have the name "source".
// What is there is not made again.
//
// Errors: compare.changed (a row that is there was made with other settings), compare.failed
// (some rows failed; the table, printed before, says which and why), compare.not_ours
// (the output folder holds other things), those of the options and data.
void RunCompare(const CompareArguments& arguments);

}  // namespace flatquant
