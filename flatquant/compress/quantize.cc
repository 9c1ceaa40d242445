#include "flatquant/compress/quantize.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/block_quantizer.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/job/ranks.h"
#include "flatquant/compress/ops/memory.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/run_plan.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/packed/linear_compute.h"

namespace flatquant {
namespace {

using Clock = std::chrono::steady_clock;
namespace fc = compress;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

uint64_t PeakMemoryBytes() {
  rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;  // the kernel counts kibibytes
}

// One process's part of a run.
class Run {
 public:
  Run(const SourceModel& model, const QuantizeOptions& options, const TokenWindows* windows)
      : plan_(model, options, windows),
        settings_(fc::SettingsOf(plan_)),
        ranks_(options.job ? options.job->ranks : nullptr) {
    if (plan_.in_order && processes() > 1) {
      throw Error(
          "quantize.needs_order",
          fmt::format("{} with {} processes",
                      options.UsesGptq() ? "--weights gptq" : "--stream quantized", processes()),
          "each block needs the quantized blocks before it",
          "start one process, or use --stream fp with --weights rtn or learned");
    }
    OpenStore();
  }

  // report: of all blocks, where this is the first process.
  PackedModel Go(QuantizeReport* report) {
    const std::vector<int64_t> missing = MissingBlocks(report);
    Barrier();  // everybody must have looked before anybody adds one
    MakeBlocks(missing);
    Barrier();
    if (!is_first()) return {};
    report->options.insert(settings_.begin(), settings_.end());
    return Collect(report);
  }

 private:
  int processes() const { return ranks_ != nullptr ? ranks_->size() : 1; }
  bool is_first() const { return ranks_ == nullptr || ranks_->is_first(); }
  void Barrier() const {
    if (ranks_ != nullptr) ranks_->Barrier();
  }

  void OpenStore() {
    if (!plan_.options.job) {
      store_ = std::make_unique<fc::BlocksInMemory>();
      return;
    }
    const JobOptions& job = *plan_.options.job;
    const auto open = [&](auto how) {
      store_ = std::make_unique<fc::JobDirectory>(how(job, plan_.config, settings_));
    };
    if (is_first()) open(fc::JobDirectory::Open);
    Barrier();
    if (!is_first()) open(fc::JobDirectory::Join);
  }

  // The blocks that no earlier run has finished, in rising order. The first process
  // reads those that are there, so that a damaged one shows before any work is done.
  std::vector<int64_t> MissingBlocks(QuantizeReport* report) const {
    std::vector<int64_t> missing;
    for (int64_t layer = 0; layer < plan_.blocks; ++layer) {
      const bool follows_missing = plan_.in_order && !missing.empty();
      if (store_->Has(layer) && !follows_missing) {
        if (is_first()) store_->Get(layer);
        ++report->resumed_blocks;
      } else {
        missing.push_back(layer);
      }
    }
    if (is_first() && report->resumed_blocks > 0) {
      fmt::print(stderr, "going on with {}: {} of {} blocks are done\n",
                 plan_.options.job->directory.string(), report->resumed_blocks, plan_.blocks);
    }
    return missing;
  }

  // This process's share: every n-th of the missing blocks.
  void MakeBlocks(const std::vector<int64_t>& missing) {
    std::vector<int64_t> share;
    const size_t first = ranks_ != nullptr ? static_cast<size_t>(ranks_->rank()) : 0;
    for (size_t i = first; i < missing.size(); i += static_cast<size_t>(processes())) {
      share.push_back(missing[i]);
    }
    if (share.empty()) return;
    fc::BlockQuantizer quantizer(plan_);
    const auto made = static_cast<int64_t>(share.size());
    const int64_t skipped = share.back() + 1 - made;
    std::optional<Progress> progress;
    if (is_first()) {
      progress.emplace(plan_.windows != nullptr ? "calibrating" : "quantizing",
                       static_cast<uint64_t>(skipped + made * (plan_.steps_per_block + 1)));
    }
    const auto advance = [&progress] {
      if (progress) progress->Advance();
    };
    for (const int64_t layer : share) {
      for (; quantizer.position() < layer; advance()) quantizer.Skip();
      const bool resumes = plan_.in_order && layer > 0 && layer == share.front();
      if (resumes) quantizer.RestoreStream(*store_);
      const fc::FinishedBlock block = quantizer.Quantize(advance);
      if (plan_.in_order && layer + 1 < plan_.blocks) {
        store_->PutStream(layer + 1, quantizer.quantized_stream());
      }
      store_->Put(layer, block);
      advance();
      if (progress && plan_.windows != nullptr) progress->Line(BlockLine(block.report));
    }
  }

  std::string BlockLine(const BlockReport& block) const {
    // Methods that do not train know no loss.
    const std::string loss =
        block.loss_before > 0
            ? fmt::format("loss {:.4e} -> {:.4e} in ", block.loss_before, block.loss_after)
            : "";
    return fmt::format("block {}/{}: {}{}", block.block + 1, plan_.config.layers, loss,
                       FormatDuration(block.seconds));
  }

  PackedModel Collect(QuantizeReport* report) const {
    const ModelConfig& config = plan_.config;
    PackedModel packed;
    packed.config = config;
    packed.scheme = plan_.options.scheme;
    packed.transforms.emplace();
    for (int64_t layer = 0; layer < plan_.blocks; ++layer) {
      fc::FinishedBlock block = store_->Get(layer);
      packed.blocks.push_back(std::move(block.block));
      if (!block.transforms) packed.transforms.reset();
      if (packed.transforms) packed.transforms->merge(*block.transforms);
      report->self_test_error = std::max(report->self_test_error, block.report.self_test_error);
      if (plan_.windows != nullptr) report->calibration_seconds += block.report.seconds;
      report->blocks.push_back(std::move(block.report));
    }
    for (int64_t layer = plan_.blocks; layer < config.layers; ++layer) {
      packed.blocks.push_back(fc::KeepBlock(plan_.model, layer));
    }
    packed.embedding = plan_.model.Embedding();
    packed.final_norm =
        fc::FromTorch(fc::ToTorch(plan_.model.FinalNorm(), at::kFloat, at::Device(at::kCPU)));
    if (!config.tied_embeddings) packed.lm_head = plan_.model.LmHead();
    packed.provenance = fc::Provenance(plan_);
    packed.provenance["linear_compute"] = ComputeOf(packed).Text();
    fmt::print(stderr,
               "self-test: the folded network equals the original within {:.1e} (bound {:.0e})\n",
               report->self_test_error, fc::kSelfTestBound);
    fmt::print(stderr, "linear compute: {}\n", packed.provenance["linear_compute"]);
    return packed;
  }

  const fc::RunPlan plan_;
  const fc::JobSettings settings_;
  Ranks* const ranks_;
  std::unique_ptr<fc::BlockStore> store_;
};

PackedModel QuantizeWith(const SourceModel& model, const QuantizeOptions& options,
                         const TokenWindows* windows, QuantizeReport* report) {
  const Clock::time_point start = Clock::now();
  QuantizeReport unwanted;
  if (report == nullptr) report = &unwanted;
  *report = {};
  fc::KeepFreedMemory();
  fc::SetOpThreads(options.threads);
  PackedModel packed = Run(model, options, windows).Go(report);
  for (const std::string& warning : Warnings(*report)) fmt::print(stderr, "warning: {}\n", warning);
  report->total_seconds = SecondsSince(start);
  report->peak_memory_bytes = PeakMemoryBytes();
  return packed;
}

}  // namespace

PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     QuantizeReport* report) {
  if (!fc::UsesCalibration(*fc::FindMethod(options), options)) {
    return QuantizeWith(model, options, nullptr, report);
  }
  if (!options.calib) fc::ThrowNeedsCalibration(options);
  const LazyTokenizer tokenizer(model.directory());
  const TokenWindows windows =
      CalibrationWindows(*options.calib, tokenizer, options.seqlen, options.nsamples, options.seed,
                         model.config().vocab);
  return QuantizeWith(model, options, &windows, report);
}

PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     const TokenWindows& calibration, QuantizeReport* report) {
  const bool used = fc::UsesCalibration(*fc::FindMethod(options), options);
  return QuantizeWith(model, options, used ? &calibration : nullptr, report);
}

}  // namespace flatquant
