#pragma once

#include <CLI/App.hpp>
#include <string>

#include "apps/quantize_options.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {

// Where a run takes transforms, diagonals and clips from instead of choosing them, and
// where it writes them to: --transforms, --from, --export-transforms.
struct TransformsArguments {
  std::string file;
  std::string from;  // a packed model, whose scheme and output projection are kept too
  std::string export_to;
  // Options that were given beside --from, and win over the packed model's.
  bool gives_scheme = false;
  bool gives_lm_head = false;
};

// Call it after --method, --scheme and --lm-head were added.
void AddTransforms(CLI::App& command, TransformsArguments* arguments);

// Errors: file.open, output.not_writable, quantize.not_packed, quantize.no_transforms (the
// model of --from keeps none).
void CheckTransforms(const TransformsArguments& arguments);

// Sets what --transforms and --from stand for. CheckTransforms has passed; comes before
// QuantizeSettings::Resolve. Errors: those of ReadPackedModel.
void ApplyTransforms(const TransformsArguments& arguments, QuantizeSettings* settings);

// --export-transforms, if given. Errors: quantize.no_transforms (flattened sites have no
// such form), file.*.
void ExportTransforms(const TransformsArguments& arguments, const PackedModel& packed);

}  // namespace flatquant
