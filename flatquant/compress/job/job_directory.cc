#include "flatquant/compress/job/job_directory.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <regex>
#include <span>
#include <thread>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/compress/job/block_state.h"
#include "flatquant/compress/job/state_file.h"
#include "flatquant/compress/job/stop_signal.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

using nlohmann::ordered_json;

constexpr const char* kFormat = "flatquant-job";
constexpr int64_t kVersion = 1;
constexpr size_t kMaxJobBytes = size_t{1} << 20;  // a thousand times what is written

// Network file systems remember for up to a minute that a file was not there.
constexpr std::chrono::seconds kFileAppears(90);

// What a job's folder may hold: its files, and what a process that dies leaves of those
// that it was writing or (StreamMemory) about to take the name from.
bool IsLeftOver(const fs::path& path) {
  static const std::regex name(R"(.*\.[0-9]+\.tmp|activations-[A-Za-z0-9]{6})");
  return std::regex_match(path.filename().string(), name);
}
bool IsJobFile(const fs::path& path) {
  static const std::regex name(R"(job\.json|(block|stream)-[0-9]{5,}\.safetensors)");
  return std::regex_match(path.filename().string(), name) || IsLeftOver(path);
}

// All files of the folder. Throws job.not_a_job if others are among them.
std::vector<fs::path> JobFiles(const fs::path& directory) {
  std::vector<fs::path> files;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
    if (!IsJobFile(entry.path())) {
      throw Error("job.not_a_job", directory.string(),
                  "holds " + Quoted(entry.path().filename().string()) + ", which is no job's",
                  "move it away, or choose another --out");
    }
    files.push_back(entry.path());
  }
  if (error) {
    throw Error("file.open", directory.string(), "cannot be listed: " + error.message(),
                "check the folder");
  }
  return files;
}

void Remove(const fs::path& file) {
  std::error_code error;
  fs::remove(file, error);
  if (!error) return;
  throw Error("file.create", file.string(), "cannot be removed: " + error.message(),
              "check the folder");
}

std::string JobText(const compress::JobSettings& settings) {
  ordered_json out = {{"format", kFormat}, {"version", kVersion}};
  ordered_json values = ordered_json::object();
  for (const auto& [name, value] : settings) values[name] = value;
  out["settings"] = std::move(values);
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

// The settings of a job.json.
nlohmann::json ReadSettings(const fs::path& path) {
  nlohmann::json job;
  if (const auto fault = ParseStrictJson(ReadFile(path, kMaxJobBytes), &job)) {
    compress::ThrowDamaged(path, fault->what);
  }
  if (!job.is_object() || !job.contains("format") || job["format"] != kFormat ||
      !job.contains("version") || !job["version"].is_number_unsigned()) {
    compress::ThrowDamaged(path, "does not describe a job");
  }
  if (job["version"].get<uint64_t>() != kVersion) {
    throw Error("job.newer_version", path.string(), "was written by another version",
                "go on with that version, or start over with --resume never");
  }
  if (!job.contains("settings") || !job["settings"].is_object()) {
    compress::ThrowDamaged(path, "has no settings");
  }
  for (const auto& [name, value] : job["settings"].items()) {
    if (!value.is_string()) compress::ThrowDamaged(path, "setting " + Quoted(name) + " is no text");
  }
  return job["settings"];
}

// "--lr was 0.005, is 0.01; ..."; empty if nothing differs.
std::string Differences(const nlohmann::json& before, const compress::JobSettings& now) {
  std::string text;
  const auto add = [&text](const std::string& name, const std::string& was, const std::string& is) {
    text += (text.empty() ? "" : ", ") + name + " was " + was + ", is " + is;
  };
  nlohmann::json rest = before;
  for (const auto& [name, value] : now) {
    const auto found = rest.find(name);
    const std::string was = found == rest.end() ? "not given" : found->get<std::string>();
    if (was != value) add(name, was, value);
    rest.erase(name);
  }
  for (const auto& [name, value] : rest.items()) add(name, value.get<std::string>(), "not given");
  return text;
}

}  // namespace

fs::path JobDirectoryFor(const fs::path& output) {
  fs::path name = output.lexically_normal();
  if (!name.has_filename()) name = name.parent_path();  // "OUT/"
  name += ".job";
  return name;
}

void RemoveJob(const fs::path& directory) {
  std::error_code error;
  // First, so that what a kill leaves is no job, instead of one that lacks files.
  fs::remove(directory / "job.json", error);
  std::vector<fs::path> files;
  for (fs::directory_iterator at(directory, error), end; !error && at != end; at.increment(error)) {
    if (IsJobFile(at->path())) files.push_back(at->path());
  }
  for (const fs::path& file : files) fs::remove(file, error);
  fs::remove(directory, error);
}

namespace compress {
namespace {

std::string Id(const JobSettings& settings) {
  Fingerprint fingerprint;
  const std::string text = JobText(settings);
  fingerprint.Add(std::as_bytes(std::span(text)));
  return fmt::format("{:016x}", fingerprint.value());
}

// Locks a folder until the last copy of the result is gone; its owner's death unlocks.
std::shared_ptr<void> Lock(const fs::path& folder) {
  const int descriptor = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    throw Error("file.create", folder.string(), "cannot be created or opened as a folder",
                "check the path");
  }
  std::shared_ptr<void> lock(nullptr, [descriptor](void*) { ::close(descriptor); });
  // A file system without locks is fine: what two runs of one job write is the same.
  if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error("job.in_use", folder.string(), "another run is working on this job",
                "wait for it, or stop it first");
  }
  return lock;
}

void CheckSame(const fs::path& file, const JobSettings& settings, const char* hint) {
  const std::string differences = Differences(ReadSettings(file), settings);
  if (differences.empty()) return;
  throw Error("job.changed", file.parent_path().string(),
              "was started with other settings: " + differences, hint);
}

// Waits for a file that another host has written.
void WaitFor(const fs::path& file) {
  const auto end = std::chrono::steady_clock::now() + kFileAppears;
  std::error_code error;
  while (!fs::exists(file, error) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace

JobDirectory::JobDirectory(const JobOptions& options, const ModelConfig& config,
                           const JobSettings& settings)
    : path_(options.directory), config_(config), id_(Id(settings)) {}

JobDirectory JobDirectory::Open(const JobOptions& options, const ModelConfig& config,
                                const JobSettings& settings) {
  JobDirectory job(options, config, settings);
  const fs::path description = job.path_ / "job.json";
  std::error_code error;
  const bool exists = fs::exists(description, error);
  if (options.resume == JobOptions::Resume::kRequired && !exists) {
    throw Error("job.nothing_to_resume", job.path_.string(), "holds no interrupted run",
                "leave --resume required out to start one");
  }
  fs::create_directories(job.path_, error);  // Lock tells
  job.lock_ = Lock(job.path_);
  const std::vector<fs::path> files = JobFiles(job.path_);
  if (exists && options.resume != JobOptions::Resume::kNever) {
    CheckSame(description, settings,
              "give the earlier settings to go on, or --resume never to discard what is there");
    for (const fs::path& file : files) {
      if (IsLeftOver(file)) Remove(file);
    }
    return job;
  }
  if (exists) Remove(description);
  for (const fs::path& file : files) Remove(file);
  const HoldSignals hold;
  AtomicFile file(description);
  file.Write(JobText(settings));
  file.Commit();
  return job;
}

JobDirectory JobDirectory::Join(const JobOptions& options, const ModelConfig& config,
                                const JobSettings& settings) {
  JobDirectory job(options, config, settings);
  WaitFor(job.path_ / "job.json");
  CheckSame(job.path_ / "job.json", settings, "start every process with the same settings");
  return job;
}

fs::path JobDirectory::BlockPath(int64_t layer) const {
  return path_ / fmt::format("block-{:05}.safetensors", layer);
}

fs::path JobDirectory::StreamPath(int64_t layer) const {
  return path_ / fmt::format("stream-{:05}.safetensors", layer);
}

bool JobDirectory::Has(int64_t layer) const {
  std::error_code error;
  return fs::exists(BlockPath(layer), error);
}

void JobDirectory::Put(int64_t layer, const FinishedBlock& block) {
  const HoldSignals hold;
  WriteBlockState(BlockPath(layer), config_, layer, block, id_);
  std::error_code ignored;  // one that stays costs space, nothing else
  fs::remove(StreamPath(layer), ignored);
}

FinishedBlock JobDirectory::Get(int64_t layer) const {
  WaitFor(BlockPath(layer));
  return ReadBlockState(BlockPath(layer), config_, layer, id_);
}

void JobDirectory::PutStream(int64_t layer, const at::Tensor& activations) {
  const HoldSignals hold;
  const at::Tensor values = activations.to(at::kCPU).contiguous();
  const TensorView view{DTypeOf(values.scalar_type()),
                        {values.sizes().begin(), values.sizes().end()},
                        static_cast<const std::byte*>(values.data_ptr())};
  WriteStateFile(StreamPath(layer), {{"activations", view}},
                 {{"format", "flatquant-stream"}, {"job", id_}});
}

void JobDirectory::GetStream(int64_t layer, at::Tensor* activations) const {
  const fs::path path = StreamPath(layer);
  std::error_code error;
  if (!fs::exists(path, error)) {
    throw Error("job.damaged", path.string(), "is missing: the run cannot go on behind it",
                "start over with --resume never");
  }
  const SafetensorsFile file = ReadStateFile(path);
  const auto job = file.metadata.find("job");
  if (job == file.metadata.end() || job->second != id_ || file.tensors.size() != 1) {
    ThrowDamaged(path, "does not hold this job's activations");
  }
  const Tensor& tensor = file.tensors.front().second;
  if (tensor.dtype != DType::kF32 || at::IntArrayRef(tensor.shape) != activations->sizes()) {
    ThrowDamaged(path, "holds activations of another shape");
  }
  // Read only, whatever from_blob's type says.
  auto* const data = const_cast<std::byte*>(tensor.data);
  activations->copy_(at::from_blob(data, activations->sizes(), at::kFloat));
}

}  // namespace compress
}  // namespace flatquant
