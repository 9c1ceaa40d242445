#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// Text <-> token ids, as the model's authors defined them. Immutable after
// loading and safe to share between threads.
class Tokenizer {
 public:
  // Reads the first of these that the directory has: tokenizer.json,
  // tokenizer.model (SentencePiece, or tiktoken ranks), vocab.json + merges.txt;
  // with tokenizer_config.json and generation_config.json for special tokens.
  // Errors: tokenizer.missing, tokenizer.bad_json, tokenizer.unsupported, ...
  static std::unique_ptr<Tokenizer> Open(const std::filesystem::path& directory);

  virtual ~Tokenizer() = default;

  // add_special: also add what the model's post-processor adds (usually BOS in
  // front). Special tokens spelled out in the text are recognised; in formats
  // that do not list them beside the vocabulary (rank files, vocab.json +
  // merges.txt) only with add_special, since their reference implementations
  // take text as mere text.
  // Invalid UTF-8 is handled as U+FFFD, as Hugging Face tokenizers do.
  virtual std::vector<int32_t> Encode(std::string_view text, bool add_special) const = 0;

  // skip_special: leave special tokens (BOS, EOS, ...) out of the text.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special) const = 0;

  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos() const = 0;
  virtual std::optional<int32_t> eos() const = 0;

  // Every id that ends a generated text: eos() and what generation_config.json
  // lists besides (chat models end their turn with another token).
  virtual std::vector<int32_t> stop_tokens() const {
    return eos() ? std::vector<int32_t>{*eos()} : std::vector<int32_t>();
  }
};

// Turns ids that arrive one by one into text, holding back bytes until they
// form whole UTF-8 characters.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  // The text that this id completes; may be empty.
  std::string Push(int32_t id);

  // Whatever was held back.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;  // tokens since the last safe cut
  std::string shown_;         // their text that the caller has already got
};

}  // namespace flatquant
