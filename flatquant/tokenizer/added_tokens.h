#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flatquant/tokenizer/bpe_model.h"
#include "flatquant/tokenizer/json_view.h"
#include "flatquant/tokenizer/normalizer.h"

namespace flatquant::tokenizer {

// A token that is recognised in the text before the model sees it.
struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
  bool normalized = false;   // looked for in normalized text, and itself normalized
  bool special = false;      // left out of decoded text on request

  // The flags of an added_tokens entry (all optional) and its content.
  // Errors: tokenizer.bad_json.
  static AddedToken Parse(const JsonView& json, int32_t id);
};

// A stretch of text: an added token (id >= 0), or plain text (id < 0).
struct TextPart {
  int32_t id;
  std::string_view text;
};

// All added tokens of a tokenizer. Immutable after construction.
class AddedTokens {
 public:
  AddedTokens() = default;
  // normalizer: the tokenizer's, or nullptr. Errors: tokenizer.bad_vocab when
  // two different tokens share an id, one token has two ids, or the vocabulary
  // says otherwise.
  AddedTokens(std::vector<AddedToken> tokens, const TokenMap& vocab, const Normalizer* normalizer,
              const std::string& where);

  // Cuts raw text at the tokens that are not normalized; plain parts then are to
  // be normalized and cut again at those that are.
  std::vector<TextPart> SplitRaw(std::string_view text) const { return Split(raw_, text); }
  std::vector<TextPart> SplitNormalized(std::string_view text) const {
    return Split(normalized_, text);
  }

  // The id of an added token, or else of one of the model's.
  std::optional<int32_t> Find(std::string_view spelling, const TokenMap& vocab) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  // A trie over bytes: finds the longest token that starts at a position.
  class Trie {
   public:
    void Add(std::string_view content, int32_t token);
    bool empty() const { return next_.empty(); }
    // Whether any token starts with this byte.
    bool Starts(char byte) const { return starts_[static_cast<unsigned char>(byte)]; }
    // The index of the longest token that text[at...] starts with, or -1.
    int32_t Longest(std::string_view text, size_t at, size_t* length) const;

   private:
    std::unordered_map<uint64_t, uint32_t> next_;  // node << 8 | byte -> node
    std::vector<int32_t> token_ = {-1};            // per node
    std::vector<bool> starts_ = std::vector<bool>(256);
  };

  std::vector<TextPart> Split(const Trie& trie, std::string_view text) const;

  std::vector<AddedToken> tokens_;
  Trie raw_;
  Trie normalized_;
};

}  // namespace flatquant::tokenizer
