#pragma once

#include <cstdint>
#include <vector>

#include "flatquant/tokenizer/bpe_model.h"
#include "flatquant/tokenizer/json_view.h"

namespace flatquant::tokenizer {

// The special tokens that a tokenizer puts around a text when asked to.
struct PostProcessor {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;

  // The "post_processor" of a tokenizer.json: TemplateProcessing,
  // BertProcessing, RobertaProcessing, ByteLevel (which only moves offsets),
  // Sequence; null adds nothing. known: whether an id belongs to a token.
  // Errors: tokenizer.bad_json, tokenizer.unsupported.
  template <typename Known>
  static PostProcessor Parse(const JsonView& json, Known known) {
    PostProcessor result;
    result.Add(json);
    for (const auto* ids : {&result.prefix, &result.suffix}) {
      for (const int32_t id : *ids) {
        if (!known(id)) json.Fail("adds id " + std::to_string(id) + ", which no token has");
      }
    }
    return result;
  }

 private:
  void Add(const JsonView& json);
  void AddTemplate(const JsonView& json);
};

}  // namespace flatquant::tokenizer
