#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/bpe_model.h"
#include "flatquant/tokenizer/json_view.h"

namespace flatquant::tokenizer {

// {"token": id, ...}. Errors: tokenizer.bad_json for ids that are no integers,
// tokenizer.bad_vocab for ids out of range.
TokenMap ParseVocab(const JsonView& json);

// Builds merge rules from pairs of spellings, rank after rank.
class MergeParser {
 public:
  // where: the file, for messages.
  MergeParser(const TokenMap& vocab, std::string where) : vocab_(vocab), where_(std::move(where)) {}

  // Errors: tokenizer.bad_merge when either token, or what they give, is not in
  // the vocabulary.
  void Add(std::string_view left, std::string_view right);
  // "left right". Errors: tokenizer.bad_merge besides.
  void AddLine(std::string_view line);

  std::vector<Merge> Take() { return std::move(merges_); }

 private:
  int32_t Id(std::string_view token) const;
  [[noreturn]] void Fail(const std::string& what) const;

  const TokenMap& vocab_;
  std::string where_;
  std::vector<Merge> merges_;
};

}  // namespace flatquant::tokenizer
