#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <vector>

namespace flatquant {

// What interrupted perplexity runs got done, in a file: per run, known by a key of
// model, arithmetic and text, the number of windows and their tokens' likelihoods.
//
// Little-endian: "FQPPLRUN", u32 version 1, u32 number of runs; per run u64 key,
// u64 windows, u64 count and `count` float32 in nats; at the end the u64 fingerprint
// of all before it.
class PerplexityState {
 public:
  struct Run {
    uint64_t windows = 0;    // finished
    std::vector<float> nll;  // of their scored tokens
  };

  // Reads the file where it exists. Errors: eval.bad_state (not such a file, a newer
  // version, damaged), file.*.
  explicit PerplexityState(std::filesystem::path path);

  // The run of this key, an empty one where there is none.
  Run& run(uint64_t key) { return runs_[key]; }

  // Writes the file as a whole; Checkpoint at most every few seconds. Errors: file.*.
  void Save();
  void Checkpoint();

 private:
  void Parse(const std::string& bytes);

  std::filesystem::path path_;
  std::map<uint64_t, Run> runs_;
  std::chrono::steady_clock::time_point saved_;
};

}  // namespace flatquant
