#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace flatquant::compress {

// AdamW over many tensors as if they were one vector: a step is a handful of passes over
// memory, however many tensors there are. It can be replayed (step_replay.h): all that
// changes from step to step lies in tensors.
class FlatAdamW {
 public:
  struct Group {
    std::vector<at::Tensor> tensors;  // float leaves on one device
    double rate;                      // their learning rate
  };

  // The tensors become parts of one vector; their handles stay valid. schedule(step): what
  // multiplies all rates in steps 0 .. steps - 1.
  FlatAdamW(const std::vector<Group>& groups, int64_t steps,
            const std::function<double(int64_t)>& schedule);

  // All tensors, in the order of Step's gradients.
  const std::vector<at::Tensor>& parameters() const { return parameters_; }

  // The step that the next Step takes.
  void Seek(int64_t step);

  // gradients: one per parameter, undefined for zero, each to be multiplied by `factor`: a
  // float on the device, undefined for 1.
  void Step(const std::vector<at::Tensor>& gradients, const at::Tensor& factor = {});

  // Whether every gradient so far was finite: what is not stays in its moments. Brings a value
  // to the host.
  bool SawOnlyFinite() const;

 private:
  std::vector<at::Tensor> parameters_;
  at::Tensor values_, mean_, square_, rates_;  // float [n]
  at::Tensor all_factors_;                     // float [steps, 3], an AdamWFactors each
  at::Tensor factors_;                         // float [3], of the step that comes
};

}  // namespace flatquant::compress
