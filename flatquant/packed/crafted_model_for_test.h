#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/packed/test_models.h"

namespace flatquant::packed_test {

// A good packed directory, taken apart so that a test can change one thing: files that
// are wrong in one way each.
class CraftedModel : public ::testing::Test {
 protected:
  explicit CraftedModel(const std::filesystem::path& good)
      : config_(nlohmann::json::parse(FileText(good / "config.json"))) {
    const Checkpoint checkpoint = Checkpoint::Open(good);
    for (const auto& [name, tensor] : checkpoint.tensors()) tensors_.emplace(name, tensor);
  }

  nlohmann::json& quantization() { return config_["quantization_config"]; }

  // The directory, after the change alone, is refused by this error, which says so.
  using Change = std::function<void()>;
  void ExpectRefused(const Change& change, const std::string& name, const std::string& says) {
    const nlohmann::json config = config_;
    const std::map<std::string, Tensor> tensors = tensors_;
    change();
    const std::filesystem::path folder = testing::ScratchFolder();
    WriteFile(folder / "config.json", config_.dump());
    std::vector<std::pair<std::string, TensorView>> views(tensors_.begin(), tensors_.end());
    WriteSafetensors(folder / "model.safetensors", views);
    EXPECT_THAT(ExpectError(name, [&] { ReadPackedModel(folder); }), ::testing::HasSubstr(says));
    config_ = config;
    tensors_ = tensors;
  }

  nlohmann::json config_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace flatquant::packed_test
