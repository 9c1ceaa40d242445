#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/added_tokens.h"
#include "flatquant/tokenizer/bpe_model.h"
#include "flatquant/tokenizer/decoder.h"
#include "flatquant/tokenizer/normalizer.h"
#include "flatquant/tokenizer/post_processor.h"
#include "flatquant/tokenizer/pre_tokenizer.h"
#include "flatquant/tokenizer/special_tokens.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant::tokenizer {

// The spelling of every id, and which ids decoding may leave out.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(const TokenMap& vocab, const std::vector<AddedToken>& added);

  // Largest id + 1.
  int32_t size() const { return static_cast<int32_t>(spellings_.size()); }
  bool Has(int32_t id) const { return id >= 0 && id < size() && present_[id]; }
  // Spellings of ids, in order; ids that no token has are left out, as are
  // special tokens where skip_special says so.
  std::vector<std::string> Spell(std::span<const int32_t> ids, bool skip_special) const;

 private:
  std::vector<std::string> spellings_;
  std::vector<bool> present_;
  std::vector<bool> special_;
};

// What a file is read into; every part but the model may be empty.
struct PipelineParts {
  std::unique_ptr<Normalizer> normalizer;
  AddedTokens added;
  PreTokenizer pre_tokenizer;
  std::unique_ptr<BpeModel> model;
  Decoder decoder;
  PostProcessor post_processor;
  Vocabulary vocabulary;
  SpecialIds specials;
  // Look for added tokens in a text even when none are to be added to it.
  bool always_find_added = true;
};

// Normalizer -> pre-tokenizer -> BPE, with added tokens taken out before: the
// tokenizer behind tokenizer.json, vocab.json + merges.txt and rank files.
class PipelineTokenizer : public Tokenizer {
 public:
  explicit PipelineTokenizer(PipelineParts parts) : parts_(std::move(parts)) {}

  std::vector<int32_t> Encode(std::string_view text, bool add_special) const override;
  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override;
  int32_t vocab_size() const override { return parts_.vocabulary.size(); }
  std::optional<int32_t> bos() const override { return parts_.specials.bos; }
  std::optional<int32_t> eos() const override { return parts_.specials.eos; }
  std::vector<int32_t> stop_tokens() const override { return parts_.specials.stops; }

 private:
  PipelineParts parts_;
};

// Valid UTF-8 of the text: itself, or *storage with U+FFFD in place of what is
// not. Errors: tokenizer.too_long beyond 2 GiB.
std::string_view ValidText(std::string_view text, std::string* storage);

}  // namespace flatquant::tokenizer
