#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/quantize.h"

namespace flatquant {
namespace {

struct Preset {
  const char* name;
  void (*apply)(QuantizeOptions*);
};

// docs/quality.md has the measurements behind these values.
constexpr Preset kPresets[] = {
    {"paper",
     [](QuantizeOptions* options) {
       const QuantizeOptions paper;
       options->epochs = paper.epochs;
       options->batch = paper.batch;
       options->lr = paper.lr;
       options->clip_lr = paper.clip_lr;
       options->weights = QuantizeOptions::Weights::kRtn;
       options->stream = QuantizeOptions::Stream::kFullPrecision;
       options->per_linear_clips = false;
     }},
    {"fast",
     [](QuantizeOptions* options) {
       options->epochs = 2;
       options->batch = 2;
       options->lr = 1e-2;
       options->clip_lr = 0.1;
       options->weights = QuantizeOptions::Weights::kLearned;
       options->weight_lr = 8e-3;
       options->stream = QuantizeOptions::Stream::kQuantized;
     }},
    {"best",
     [](QuantizeOptions* options) {
       ApplyPreset("fast", options);
       options->epochs = 3;
     }},
};

}  // namespace

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

void ApplyPreset(const std::string& name, QuantizeOptions* options) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return preset.apply(options);
  }
  throw Error("quantize.unknown_preset", "--preset " + name, "there is no such preset",
              "see flatquant quantize --help");
}

}  // namespace flatquant
