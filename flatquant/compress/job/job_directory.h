#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/compress/job/block_store.h"
#include "flatquant/compress/job/job_options.h"
#include "flatquant/model/config.h"

namespace flatquant::compress {

// What decides a run's bytes: names, as people know them ("--lr", "calibration data"),
// and values.
using JobSettings = std::vector<std::pair<std::string, std::string>>;

// The folder of a job:
//
//   job.json                   the settings
//   block-00003.safetensors    a finished block (block_state.h)
//   stream-00004.safetensors   what enters the next block, where blocks depend on the
//                              ones before them; one, or two for a moment
//
// Every file appears whole or not at all. A process that dies leaves the file that it
// was writing under a temporary name; the next one removes it.
//
// Errors of Open and Join: job.nothing_to_resume, job.changed (names what differs),
// job.in_use, job.not_a_job (the folder holds other things), job.newer_version,
// job.damaged, file.*.
class JobDirectory : public BlockStore {
 public:
  // Opens the job or starts one, as options.resume says, and locks it while the object
  // lives. Where several processes share the work the first one does this, and then
  // the others Join.
  static JobDirectory Open(const JobOptions& options, const ModelConfig& config,
                           const JobSettings& settings);
  static JobDirectory Join(const JobOptions& options, const ModelConfig& config,
                           const JobSettings& settings);

  bool Has(int64_t layer) const override;
  void Put(int64_t layer, const FinishedBlock& block) override;
  FinishedBlock Get(int64_t layer) const override;
  void PutStream(int64_t layer, const at::Tensor& activations) override;
  void GetStream(int64_t layer, at::Tensor* activations) const override;

 private:
  JobDirectory(const JobOptions& options, const ModelConfig& config, const JobSettings& settings);

  std::filesystem::path BlockPath(int64_t layer) const;
  std::filesystem::path StreamPath(int64_t layer) const;

  std::filesystem::path path_;
  ModelConfig config_;
  std::string id_;              // of the settings; every file of the job names it
  std::shared_ptr<void> lock_;  // null for those that joined
};

}  // namespace flatquant::compress
