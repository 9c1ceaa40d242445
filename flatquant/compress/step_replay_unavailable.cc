#include "flatquant/compress/step_replay.h"

#include <utility>

// Stands in for step_replay_cuda.cc where LibTorch has no CUDA.
namespace flatquant::compress {

struct StepReplay::Recording {};

StepReplay::StepReplay(at::Device, std::function<void()> step) : step_(std::move(step)) {}

StepReplay::~StepReplay() = default;

void StepReplay::operator()() { step_(); }

}  // namespace flatquant::compress
