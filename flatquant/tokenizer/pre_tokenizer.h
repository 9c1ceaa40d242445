#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/json_view.h"
#include "flatquant/tokenizer/text_pattern.h"

namespace flatquant::tokenizer {

// The published pre-tokenizer patterns of three model families.
extern const std::string_view kGpt2Pattern;
extern const std::string_view kLlama3Pattern;
extern const std::string_view kQwen2Pattern;

// A text and the pieces it has been cut into, in order; steps may also rewrite
// the text. `text` views the caller's memory or `storage`.
struct PreTokenized {
  // whole: outlives this object. beginning: it is the start of the user's text.
  PreTokenized(std::string_view whole, bool beginning) : text(whole), at_start(beginning) {
    if (!text.empty()) pieces.push_back({0, text.size()});
  }
  PreTokenized(const PreTokenized&) = delete;  // text may view storage
  PreTokenized& operator=(const PreTokenized&) = delete;

  std::string_view text;
  std::vector<Span> pieces;
  std::string storage;
  bool at_start;
};

// One step that cuts pieces further. Immutable.
class PreTokenizerStep {
 public:
  virtual ~PreTokenizerStep() = default;
  virtual void Apply(PreTokenized* text) const = 0;
};

// Cuts text into the pieces that are encoded independently. Immutable.
class PreTokenizer {
 public:
  // No cutting at all.
  PreTokenizer() = default;
  // A byte-level one with this pattern (each match a piece).
  static PreTokenizer ByteLevel(std::string_view pattern);

  // The "pre_tokenizer" of a tokenizer.json: Sequence, ByteLevel, Split, Digits,
  // Metaspace, Whitespace, WhitespaceSplit, Punctuation. null cuts nothing.
  // Errors: tokenizer.bad_json, tokenizer.unsupported, tokenizer.bad_regex.
  static PreTokenizer Parse(const JsonView& json);

  void Apply(PreTokenized* text) const {
    for (const auto& step : steps_) step->Apply(text);
  }

  // Pieces stand for raw bytes: the model spells bytes in printable characters
  // (byte_level.h), and that spelling is left to it.
  bool byte_level() const { return byte_level_; }

 private:
  std::vector<std::unique_ptr<PreTokenizerStep>> steps_;
  bool byte_level_ = false;
};

}  // namespace flatquant::tokenizer
