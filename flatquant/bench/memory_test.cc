// A running packed model takes little more memory than its file and its KV cache.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "flatquant/bench/synthetic_model.h"
#include "flatquant/model/named_shapes.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine.h"
#include "tests/support/shared_data.h"

namespace flatquant::bench {
namespace {

constexpr const char* kFolderVariable = "FLATQUANT_MEMORY_TEST_FOLDER";

// "VmHWM" (the peak) or "VmRSS" of this process, in bytes.
double Memory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with(field + ":")) return 1024.0 * std::stod(line.substr(field.size() + 1));
  }
  return -1;
}

// The other test's child: runs the model and writes what it took.
TEST(Memory, ChildRunsTheModel) {
  const char* folder = std::getenv(kFolderVariable);
  if (folder == nullptr) GTEST_SKIP() << "runs as a process of its own";
  const double before = Memory("VmRSS");
  const auto engine = Engine::Open(std::filesystem::path(folder) / "model", {.threads = 2});
  Sequence sequence(*engine, 2048);
  engine->Forward(sequence, std::vector<int32_t>(128, 5), Engine::Logits::kLast);
  for (int32_t token = 0; token < 4; ++token) {
    engine->Forward(sequence, {&token, 1}, Engine::Logits::kLast);
  }
  std::ofstream(std::filesystem::path(folder) / "result")
      << Memory("VmHWM") - before << " " << sequence.cache_bytes();
}

TEST(Memory, PeakIsAFifthAboveFileAndCache) {
  ModelConfig config = NamedShape("tinyllama-1.1b");
  config.hidden = 1024;
  config.ffn = 2816;
  config.heads = 16;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.layers = 16;
  config.vocab = 8000;
  const std::filesystem::path folder = testing::ScratchFolder();
  std::ofstream(folder / "config.json") << flatquant::ConfigJson(config);
  WritePackedModel(SyntheticModel(config, Variant::kFlatQuant, {}, 1), folder, folder / "model");
  const auto file_bytes =
      static_cast<double>(std::filesystem::file_size(folder / "model" / "model.safetensors"));

  const pid_t child = ::fork();
  if (child == 0) {
    ::setenv(kFolderVariable, folder.c_str(), 1);
    ::execl("/proc/self/exe", "memory_test", "--gtest_filter=Memory.ChildRunsTheModel", nullptr);
    ::_exit(127);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(WEXITSTATUS(status), 0);
  double peak = 0, cache_bytes = 0;
  std::ifstream(folder / "result") >> peak >> cache_bytes;
  EXPECT_GT(peak, 0.5 * file_bytes);  // the weights were there
  EXPECT_LT(peak, 1.2 * (file_bytes + cache_bytes))
      << "file " << file_bytes << ", cache " << cache_bytes;
}

}  // namespace
}  // namespace flatquant::bench
