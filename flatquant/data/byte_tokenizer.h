#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant::testing {

// One token per byte, BOS 256 in front, EOS 257: lets tests see the very text
// that a source hands to the tokenizer.
class ByteTokenizer : public Tokenizer {
 public:
  static constexpr int32_t kBos = 256;
  static constexpr int32_t kEos = 257;
  static constexpr int64_t kVocab = 258;

  std::vector<int32_t> Encode(std::string_view text, bool add_special) const override {
    std::vector<int32_t> ids;
    if (add_special) ids.push_back(kBos);
    for (char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  // Special tokens show as "<" and ">".
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override {
    std::string text;
    for (int32_t id : ids) {
      if (id < 256) {
        text += static_cast<char>(id);
      } else if (!skip_special) {
        text += id == kBos ? '<' : '>';
      }
    }
    return text;
  }

  int32_t vocab_size() const override { return kVocab; }
  std::optional<int32_t> bos() const override { return kBos; }
  std::optional<int32_t> eos() const override { return kEos; }
};

}  // namespace flatquant::testing
