#include "flatquant/eval/perplexity_state.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's order is the machine's");

constexpr char kMagic[8] = {'F', 'Q', 'P', 'P', 'L', 'R', 'U', 'N'};
constexpr uint32_t kVersion = 1;
// An interruption costs at most the windows of so many seconds.
constexpr double kSaveSeconds = 10;
// Likelihoods of a quarter of a billion tokens: more than any text that is read.
constexpr size_t kMaxBytes = size_t{1} << 30;

uint64_t ChecksumOf(std::string_view bytes) {
  Fingerprint fingerprint;
  fingerprint.Add(std::as_bytes(std::span(bytes)));
  return fingerprint.value();
}

template <typename T>
void Append(std::string& bytes, const T& value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

}  // namespace

PerplexityState::PerplexityState(std::filesystem::path path)
    : path_(std::move(path)), saved_(std::chrono::steady_clock::now()) {
  std::error_code ignored;
  if (std::filesystem::exists(path_, ignored)) Parse(ReadFile(path_, kMaxBytes));
}

void PerplexityState::Parse(const std::string& bytes) {
  const auto fail = [&](const char* what) {
    throw Error("eval.bad_state", path_.string(), what,
                "name the file of an interrupted run, or delete it to start again");
  };
  std::string_view rest = bytes;
  const auto take = [&]<typename T>(T* value) {
    if (rest.size() < sizeof(T)) fail("ends too early");
    std::memcpy(value, rest.data(), sizeof(T));
    rest.remove_prefix(sizeof(T));
  };
  if (!rest.starts_with(std::string_view(kMagic, sizeof(kMagic)))) fail("is no such file");
  rest.remove_prefix(sizeof(kMagic));
  uint32_t version = 0, runs = 0;
  take(&version);
  if (version != kVersion) fail("was written by another version");
  if (rest.size() < sizeof(uint64_t)) fail("ends too early");
  uint64_t checksum = 0;
  std::memcpy(&checksum, bytes.data() + bytes.size() - sizeof(checksum), sizeof(checksum));
  if (checksum != ChecksumOf(std::string_view(bytes).substr(0, bytes.size() - 8))) {
    fail("is damaged");
  }
  rest.remove_suffix(sizeof(checksum));
  take(&runs);
  for (uint32_t i = 0; i < runs; ++i) {
    uint64_t key = 0, count = 0;
    Run run;
    take(&key);
    take(&run.windows);
    take(&count);
    if (count > rest.size() / sizeof(float)) fail("ends too early");
    if (run.windows > count) fail("has windows without tokens");
    run.nll.resize(static_cast<size_t>(count));
    std::memcpy(run.nll.data(), rest.data(), run.nll.size() * sizeof(float));
    rest.remove_prefix(run.nll.size() * sizeof(float));
    for (float value : run.nll) {
      if (!std::isfinite(value)) fail("has a likelihood that is not finite");
    }
    if (!runs_.emplace(key, std::move(run)).second) fail("has a run twice");
  }
  if (!rest.empty()) fail("has bytes after its last run");
}

void PerplexityState::Save() {
  std::string bytes(kMagic, sizeof(kMagic));
  Append(bytes, kVersion);
  Append(bytes, static_cast<uint32_t>(runs_.size()));
  for (const auto& [key, run] : runs_) {
    Append(bytes, key);
    Append(bytes, run.windows);
    Append(bytes, static_cast<uint64_t>(run.nll.size()));
    bytes.append(reinterpret_cast<const char*>(run.nll.data()), run.nll.size() * sizeof(float));
  }
  Append(bytes, ChecksumOf(bytes));
  AtomicFile file(path_);
  file.Write(bytes);
  file.Commit();
  saved_ = std::chrono::steady_clock::now();
}

void PerplexityState::Checkpoint() {
  const std::chrono::duration<double> since = std::chrono::steady_clock::now() - saved_;
  if (since.count() >= kSaveSeconds) Save();
}

}  // namespace flatquant
