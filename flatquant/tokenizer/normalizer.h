#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/json_view.h"

namespace flatquant::tokenizer {

// One step that rewrites text before it is cut into pieces. Immutable.
class Normalizer {
 public:
  virtual ~Normalizer() = default;
  // text: valid UTF-8; so is the result.
  virtual std::string Apply(std::string_view text) const = 0;
};

std::unique_ptr<Normalizer> MakeNfcNormalizer();

// The "normalizer" of a tokenizer.json: Sequence, Prepend, Replace, NFC, NFD,
// NFKC, NFKD, Lowercase, Strip, StripAccents, ByteLevel. nullptr for null.
// Errors: tokenizer.bad_json, tokenizer.unsupported, tokenizer.bad_regex.
std::unique_ptr<Normalizer> ParseNormalizer(const JsonView& json);

}  // namespace flatquant::tokenizer
