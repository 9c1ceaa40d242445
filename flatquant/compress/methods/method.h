#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/residual_stream.h"

namespace flatquant::compress {

// What a method may look at when it chooses the parameters of one block.
struct BlockTask {
  const ModelConfig& config;
  const QuantizeOptions& options;
  int64_t layer;
  const BlockWeights& weights;
  const ResidualStream* stream;  // after RunBlock; null for methods without calibration
  Amp amp;
  at::Device device;
  std::function<void()> on_step;  // to be called StepsPerBlock times
};

// A way to fill in the sites and the cache of a block: transforms, diagonals,
// clips. Everything after it is the same for all methods.
class Method {
 public:
  virtual ~Method() = default;

  virtual bool NeedsCalibration() const = 0;

  // Whether Choose trains the corrections of learned weights along with the rest,
  // where the options ask for them. They are trained after it otherwise.
  virtual bool LearnsWeights() const { return false; }

  // Whether Choose trains from random starts, of which it can keep the best (--restarts).
  virtual bool HasRandomStarts() const { return false; }

  // Units of progress that Choose reports per block.
  virtual int64_t StepsPerBlock(const QuantizeOptions& options, int64_t windows) const = 0;

  // report: losses, for methods that know them.
  virtual BlockParameters Choose(const BlockTask& task, BlockReport* report) const = 0;
};

// Null for an unknown name; the names are MethodNames() of quantize.h.
std::unique_ptr<Method> MakeMethod(std::string_view name);

}  // namespace flatquant::compress
