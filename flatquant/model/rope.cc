#include <algorithm>
#include <cmath>
#include <numbers>

#include "flatquant/model/config.h"

namespace flatquant {

std::vector<double> RopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    const double frequency = std::pow(rope.theta, -exponent);
    switch (rope.type) {
      case RopeConfig::Type::kDefault:
        frequencies[i] = frequency;
        break;
      case RopeConfig::Type::kLinear:
        frequencies[i] = frequency / rope.factor;
        break;
      case RopeConfig::Type::kLlama3: {
        // Llama 3.1's rule, as in Hugging Face transformers' modeling_rope_utils
        // (_compute_llama3_parameters): pairs that turn more than
        // high_freq_factor times in the original context keep their frequency,
        // those that turn less than low_freq_factor times are slowed by factor,
        // and between the two the frequency is interpolated linearly in turns.
        const double turns =
            static_cast<double>(rope.original_max_positions) * frequency / (2.0 * std::numbers::pi);
        const double weight = std::clamp(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
            1.0);
        frequencies[i] = (1.0 - weight) * frequency / rope.factor + weight * frequency;
        break;
      }
    }
  }
  return frequencies;
}

}  // namespace flatquant
