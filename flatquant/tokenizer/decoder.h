#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/json_view.h"

namespace flatquant::tokenizer {

// One step from token spellings to text. Immutable.
class DecoderStep {
 public:
  virtual ~DecoderStep() = default;
  virtual void Apply(std::vector<std::string>* tokens) const = 0;
};

// Turns the spellings of a sequence of tokens into text. Immutable.
class Decoder {
 public:
  // Spellings in the printable form of bytes (byte_level.h).
  static Decoder ByteLevel();
  // Where encoding put a space that was not in the text.
  enum class Padding { kNone, kFront, kBehind };
  // SentencePiece's pieces: U+2581 is a space, <0xNN> a byte; the padding goes.
  static Decoder SentencePiece(Padding padding);
  // The "decoder" of a tokenizer.json: Sequence, Replace, ByteFallback, Fuse,
  // Strip, ByteLevel, Metaspace, BPEDecoder. Without one (null) spellings are
  // joined by spaces. Errors: tokenizer.bad_json, tokenizer.unsupported.
  static Decoder Parse(const JsonView& json);

  // Bytes that form no UTF-8 become U+FFFD.
  std::string Apply(std::vector<std::string> tokens) const;

 private:
  std::vector<std::unique_ptr<DecoderStep>> steps_;
  bool join_with_spaces_ = false;
};

}  // namespace flatquant::tokenizer
