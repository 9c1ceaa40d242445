#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

namespace flatquant::compress {

// Repeats one step of a computation. A training step is a thousand small kernels, which
// a GPU runs faster than a CPU launches them. So on a GPU the first few calls run the
// step, the next one records its kernels as a CUDA graph, and from then on a call
// launches that graph: one launch per step. Elsewhere, or where recording fails (said
// once on stderr), each call runs the step.
//
// The step reads and writes the same tensors each time, brings no values to the host and
// does not depend on any; so each call does what calling the step would have done.
// FLATQUANT_CUDA_GRAPH=0 in the environment turns recording off.
class StepReplay {
 public:
  StepReplay(at::Device device, std::function<void()> step);
  ~StepReplay();
  StepReplay(const StepReplay&) = delete;
  StepReplay& operator=(const StepReplay&) = delete;

  void operator()();

 private:
  struct Recording;  // a CUDA graph and how far it is

  std::function<void()> step_;
  std::unique_ptr<Recording> recording_;  // null: call the step
};

}  // namespace flatquant::compress
