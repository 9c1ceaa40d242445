#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/compress/report.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant::compress {

struct FinishedBlock {
  PackedBlock block;
  BlockReport report;
  // What transforms.safetensors keeps of the block (export_transforms.h); none for a
  // block that has no such form.
  std::optional<std::map<std::string, Tensor>> transforms = {};
};

// Where a run puts blocks as they are finished, and finds those that are.
class BlockStore {
 public:
  virtual ~BlockStore() = default;

  virtual bool Has(int64_t layer) const = 0;
  virtual void Put(int64_t layer, const FinishedBlock& block) = 0;
  virtual FinishedBlock Get(int64_t layer) const = 0;

  // What enters block `layer` from the quantized blocks before it, [windows, tokens,
  // hidden] float32: kept from before Put(layer - 1) until Put(layer).
  virtual void PutStream(int64_t layer, const at::Tensor& activations) = 0;
  // Fills in a tensor of the same shape.
  virtual void GetStream(int64_t layer, at::Tensor* activations) const = 0;
};

// Blocks that live as long as the run.
class BlocksInMemory : public BlockStore {
 public:
  bool Has(int64_t layer) const override { return blocks_.contains(layer); }
  void Put(int64_t layer, const FinishedBlock& block) override { blocks_.emplace(layer, block); }
  FinishedBlock Get(int64_t layer) const override { return blocks_.at(layer); }

  // The run has its stream, and none resumes it.
  void PutStream(int64_t, const at::Tensor&) override {}
  void GetStream(int64_t, at::Tensor*) const override { FLATQUANT_CHECK(false); }

 private:
  std::map<int64_t, FinishedBlock> blocks_;
};

}  // namespace flatquant::compress
