#include "flatquant/tokenizer/added_tokens.h"

#include <algorithm>
#include <unordered_set>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

// The start of the last character of text (valid UTF-8, not empty).
size_t LastChar(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (text[at] & 0xc0) == 0x80) --at;
  return at;
}

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWord(DecodeUtf8(text, LastChar(text)).code);
}

bool StartsWithWord(std::string_view text) {
  return !text.empty() && IsWord(DecodeUtf8(text, 0).code);
}

// Bytes of white space at the start of text.
size_t LeadingSpace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Char c = DecodeUtf8(text, at);
    if (!IsSpace(c.code)) break;
    at += c.length;
  }
  return at;
}

// Bytes of white space at the end of text.
size_t TrailingSpace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t at = LastChar(text.substr(0, end));
    if (!IsSpace(DecodeUtf8(text, at).code)) break;
    end = at;
  }
  return text.size() - end;
}

}  // namespace

AddedToken AddedToken::Parse(const JsonView& json, int32_t id) {
  AddedToken token;
  token.id = id;
  token.content = json["content"].String();
  token.special = json["special"].BoolOr(false);
  token.single_word = json["single_word"].BoolOr(false);
  token.lstrip = json["lstrip"].BoolOr(false);
  token.rstrip = json["rstrip"].BoolOr(false);
  token.normalized = json["normalized"].BoolOr(!token.special);
  return token;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const TokenMap& vocab,
                         const Normalizer* normalizer, const std::string& where)
    : tokens_(std::move(tokens)) {
  const auto fail = [&](const std::string& what) {
    throw Error("tokenizer.bad_vocab", where, what, "download the tokenizer's files again");
  };
  std::unordered_set<int32_t> vocab_ids;
  for (const auto& [spelling, id] : vocab) vocab_ids.insert(id);
  std::unordered_map<int32_t, std::string_view> by_id;
  std::unordered_map<std::string_view, int32_t> by_content;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const AddedToken& token = tokens_[i];
    const std::string name =
        "added token \"" + token.content + "\" (id " + std::to_string(token.id) + ")";
    if (token.id < 0 || token.id > kMaxTokenId) fail(name + " has an id out of range");
    const auto in_vocab = vocab.find(token.content);
    if (in_vocab != vocab.end() && in_vocab->second != token.id) {
      fail(name + " has id " + std::to_string(in_vocab->second) + " in the vocabulary");
    }
    if (in_vocab == vocab.end() && vocab_ids.contains(token.id)) {
      fail(name + " takes the id of another token");
    }
    if (by_id.emplace(token.id, token.content).first->second != token.content) {
      fail(name + " takes the id of another added token");
    }
    if (by_content.emplace(token.content, token.id).first->second != token.id) {
      fail(name + " appears twice with different ids");
    }
    if (!token.normalized) {
      raw_.Add(token.content, static_cast<int32_t>(i));
    } else if (normalizer == nullptr) {
      normalized_.Add(token.content, static_cast<int32_t>(i));
    } else {
      normalized_.Add(normalizer->Apply(token.content), static_cast<int32_t>(i));
    }
  }
}

std::optional<int32_t> AddedTokens::Find(std::string_view spelling, const TokenMap& vocab) const {
  for (const AddedToken& token : tokens_) {
    if (token.content == spelling) return token.id;
  }
  const auto found = vocab.find(spelling);
  if (found == vocab.end()) return std::nullopt;
  return found->second;
}

void AddedTokens::Trie::Add(std::string_view content, int32_t token) {
  if (content.empty()) return;
  starts_[static_cast<unsigned char>(content[0])] = true;
  uint32_t node = 0;
  for (const char c : content) {
    const uint64_t key = static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(c);
    const auto [found, fresh] = next_.emplace(key, static_cast<uint32_t>(token_.size()));
    if (fresh) token_.push_back(-1);
    node = found->second;
  }
  if (token_[node] < 0) token_[node] = token;
}

int32_t AddedTokens::Trie::Longest(std::string_view text, size_t at, size_t* length) const {
  int32_t best = -1;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto found =
        next_.find(static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(text[i]));
    if (found == next_.end()) break;
    node = found->second;
    if (token_[node] >= 0) {
      best = token_[node];
      *length = i + 1 - at;
    }
  }
  return best;
}

std::vector<TextPart> AddedTokens::Split(const Trie& trie, std::string_view text) const {
  std::vector<TextPart> parts;
  size_t done = 0;
  if (!trie.empty()) {
    for (size_t at = 0; at < text.size();) {
      size_t length = 0;
      const int32_t index = trie.Starts(text[at]) ? trie.Longest(text, at, &length) : -1;
      if (index < 0) {
        ++at;
        continue;
      }
      const AddedToken& token = tokens_[index];
      size_t begin = at;
      size_t end = at + length;
      at = end;  // a match that single_word rejects is skipped as a whole
      if (token.single_word &&
          (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
        continue;
      }
      if (token.lstrip) begin = std::max(done, begin - TrailingSpace(text.substr(0, begin)));
      if (token.rstrip) end += LeadingSpace(text.substr(end));
      if (begin > done) parts.push_back({-1, text.substr(done, begin - done)});
      parts.push_back({token.id, text.substr(begin, end - begin)});
      done = end;
      at = end;
    }
  }
  if (done < text.size()) parts.push_back({-1, text.substr(done)});
  return parts;
}

}  // namespace flatquant::tokenizer
