#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "flatquant/compress/step_replay.h"

namespace flatquant::compress {
namespace {

// Steps before recording: libraries make their handles, workspaces and choices of
// kernels in the first, which cannot be recorded; one more lets memory settle.
constexpr int kWarmUpSteps = 3;

bool TurnedOff() {
  const char* value = std::getenv("FLATQUANT_CUDA_GRAPH");
  return value != nullptr && std::string_view(value) == "0";
}

}  // namespace

struct StepReplay::Recording {
  explicit Recording(at::Device device)
      // Work on the default stream cannot be recorded.
      : stream(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  // One step, run on the stream that records.
  void WarmUp(const std::function<void()>& step) {
    c10::cuda::getCurrentCUDAStream(stream.device_index()).synchronize();
    {
      const c10::cuda::CUDAStreamGuard guard(stream);
      step();
    }
    stream.synchronize();
    ++calls;
  }

  // Records a step without running it.
  void Record(const std::function<void()>& step) {
    c10::cuda::getCurrentCUDAStream(stream.device_index()).synchronize();
    graph = std::make_unique<at::cuda::CUDAGraph>();
    const c10::cuda::CUDAStreamGuard guard(stream);
    graph->capture_begin();
    try {
      step();
    } catch (...) {
      EndBrokenCapture();
      throw;
    }
    graph->capture_end();
    is_recorded = true;
  }

  // The stream must not go on recording. What this throws is only that it is broken.
  void EndBrokenCapture() {
    try {
      graph->capture_end();
    } catch (const std::exception&) {
      static_cast<void>(cudaGetLastError());
      // LibTorch's allocator was not told of the end and goes on asking the graph, which
      // must outlive it.
      static_cast<void>(graph.release());
    }
  }

  ~Recording() {
    graph.reset();
    // The graph's memory goes back to the device, for the next block's.
    if (is_recorded) c10::cuda::CUDACachingAllocator::emptyCache();
  }

  c10::cuda::CUDAStream stream;
  std::unique_ptr<at::cuda::CUDAGraph> graph;
  int calls = 0;
  bool is_recorded = false;
};

StepReplay::StepReplay(at::Device device, std::function<void()> step) : step_(std::move(step)) {
  if (device.is_cuda() && !TurnedOff()) recording_ = std::make_unique<Recording>(device);
}

StepReplay::~StepReplay() = default;

void StepReplay::operator()() {
  if (recording_ == nullptr) return step_();
  if (recording_->calls < kWarmUpSteps) return recording_->WarmUp(step_);
  if (!recording_->is_recorded) {
    try {
      recording_->Record(step_);
    } catch (const std::exception& error) {
      static bool said = false;
      const std::string_view what = error.what();
      if (!std::exchange(said, true)) {
        fmt::print(stderr, "training steps are launched kernel by kernel: {}\n",
                   what.substr(0, what.find('\n')));
      }
      recording_.reset();
      return step_();
    }
  }
  recording_->graph->replay();
}

}  // namespace flatquant::compress
