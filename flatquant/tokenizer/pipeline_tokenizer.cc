#include "flatquant/tokenizer/pipeline_tokenizer.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {

std::string_view ValidText(std::string_view text, std::string* storage) {
  if (text.size() > (size_t{1} << 31)) {
    throw Error("tokenizer.too_long", "text", "more than 2 GiB in one piece", "split the text");
  }
  if (ValidUtf8Prefix(text) == text.size()) return text;
  *storage = ReplaceInvalidUtf8(text);
  return *storage;
}

Vocabulary::Vocabulary(const TokenMap& vocab, const std::vector<AddedToken>& added) {
  int32_t last = -1;
  for (const auto& [spelling, id] : vocab) last = std::max(last, id);
  for (const AddedToken& token : added) last = std::max(last, token.id);
  spellings_.resize(last + 1);
  present_.resize(last + 1);
  special_.resize(last + 1);
  for (const auto& [spelling, id] : vocab) {
    spellings_[id] = spelling;
    present_[id] = true;
  }
  for (const AddedToken& token : added) {
    spellings_[token.id] = token.content;
    present_[token.id] = true;
    special_[token.id] = token.special;
  }
}

std::vector<std::string> Vocabulary::Spell(std::span<const int32_t> ids, bool skip_special) const {
  std::vector<std::string> spellings;
  spellings.reserve(ids.size());
  for (const int32_t id : ids) {
    if (!Has(id) || (skip_special && special_[id])) continue;
    spellings.push_back(spellings_[id]);
  }
  return spellings;
}

std::vector<int32_t> PipelineTokenizer::Encode(std::string_view text, bool add_special) const {
  std::string valid;
  text = ValidText(text, &valid);
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  if (add_special) ids = parts_.post_processor.prefix;
  BpeModel::Session session(*parts_.model);
  static const AddedTokens kNone;
  const AddedTokens& added = add_special || parts_.always_find_added ? parts_.added : kNone;
  for (const TextPart& raw : added.SplitRaw(text)) {
    if (raw.id >= 0) {
      ids.push_back(raw.id);
      continue;
    }
    const std::string normalized =
        parts_.normalizer ? parts_.normalizer->Apply(raw.text) : std::string();
    const std::string_view plain = parts_.normalizer ? std::string_view(normalized) : raw.text;
    for (const TextPart& part : added.SplitNormalized(plain)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const bool at_start = raw.text.data() == text.data() && part.text.data() == plain.data();
      PreTokenized pieces(part.text, at_start);
      parts_.pre_tokenizer.Apply(&pieces);
      for (const Span& piece : pieces.pieces) {
        session.Encode(pieces.text.substr(piece.begin, piece.end - piece.begin), &ids);
      }
    }
  }
  if (add_special) {
    ids.insert(ids.end(), parts_.post_processor.suffix.begin(), parts_.post_processor.suffix.end());
  }
  return ids;
}

std::string PipelineTokenizer::Decode(std::span<const int32_t> ids, bool skip_special) const {
  return parts_.decoder.Apply(parts_.vocabulary.Spell(ids, skip_special));
}

}  // namespace flatquant::tokenizer
