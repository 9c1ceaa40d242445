#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "flatquant/compress/quantize.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/network.h"
#include "flatquant/model/source_model.h"
#include "flatquant/packed/packed_model.h"

// Why a method works, or does not: how flat it makes what is quantized (flatness.h), and
// how the network's error grows from block to block (error_landscape.h). Free of LibTorch.
namespace flatquant {

struct FlatnessOptions {
  // Scheme, and how methods calibrate. Its method, weights and transforms are not looked
  // at: weights are rounded to nearest for all methods alike.
  QuantizeOptions quantize;
  std::vector<std::string> methods;  // see MethodNames()
  // FlatQuant's learned matrices, instead of training (flat_matrices.pth).
  std::optional<std::filesystem::path> transforms;
  // A model quantized from this one, studied beside the methods.
  const PackedModel* packed = nullptr;
  std::vector<int64_t> blocks;  // whose channels are looked at; empty: all
  int64_t windows = 4;          // of the calibration data, from the first, are measured
};

struct ChannelCurve {
  std::vector<float> magnitudes;  // of all channels, falling
  double flatness = 0;            // their distance from the flat line, 0 = flat
};

struct SiteCurves {
  int64_t block = 0;
  Site site = Site::kAttnIn;
  ChannelCurve activation;
  ChannelCurve weight;
};

struct MethodStudy {
  std::string name;               // the method's, the packed model's as its provenance has it
  std::vector<SiteCurves> sites;  // of the chosen blocks, block by block
  // [blocks][tokens]: mean squared error of what each block puts out against the original
  // network's, the blocks before it being quantized too.
  std::vector<std::vector<float>> errors;
};

// A study per method, then that of the packed model. Prints progress. Errors:
// flatness.bad_block, flatness.other_model (`packed` has another shape), flatness.device
// (a packed model is studied on the CPU); those of Quantize.
std::vector<MethodStudy> StudyFlatness(const SourceModel& model, const TokenWindows& calibration,
                                       const FlatnessOptions& options);

}  // namespace flatquant
