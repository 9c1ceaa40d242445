#pragma once

#include <filesystem>

namespace flatquant {

class Ranks;

// A run that keeps what it finishes in a folder, so that another one can go on.
struct JobOptions {
  std::filesystem::path directory;
  enum class Resume {
    kAuto,      // go on with the job of the same settings that is there, or start one
    kRequired,  // there must be one
    kNever      // discard what is there
  };
  Resume resume = Resume::kAuto;
  // The processes that share the work; null: this one does it alone.
  Ranks* ranks = nullptr;
};

// The job that belongs to an output folder: "OUT.job".
std::filesystem::path JobDirectoryFor(const std::filesystem::path& output);

// Removes a job when its model is written. Other files in its folder stay, and then
// the folder does.
void RemoveJob(const std::filesystem::path& directory);

}  // namespace flatquant
