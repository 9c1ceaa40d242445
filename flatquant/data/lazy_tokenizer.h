#pragma once

#include <filesystem>
#include <memory>
#include <mutex>

#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {

// The tokenizer of a model directory, opened at its first use: sources of token
// ids then work for models that come without a tokenizer. Its errors appear at
// that first use.
class LazyTokenizer : public Tokenizer {
 public:
  explicit LazyTokenizer(std::filesystem::path directory) : directory_(std::move(directory)) {}

  std::vector<int32_t> Encode(std::string_view text, bool add_special) const override {
    return Get().Encode(text, add_special);
  }
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override {
    return Get().Decode(ids, skip_special);
  }
  int32_t vocab_size() const override { return Get().vocab_size(); }
  std::optional<int32_t> bos() const override { return Get().bos(); }
  std::optional<int32_t> eos() const override { return Get().eos(); }

 private:
  const Tokenizer& Get() const {
    std::call_once(once_, [this] { tokenizer_ = Tokenizer::Open(directory_); });
    return *tokenizer_;
  }

  std::filesystem::path directory_;
  mutable std::once_flag once_;
  mutable std::unique_ptr<Tokenizer> tokenizer_;
};

}  // namespace flatquant
