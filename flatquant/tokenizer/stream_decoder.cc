#include <algorithm>
#include <string_view>

#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {
namespace {

constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

// Bytes of text that no later token can change: all but trailing U+FFFD, which
// may stand for the first bytes of a character (three at most).
size_t SettledBytes(std::string_view text) {
  constexpr int kMaxPartialBytes = 3;
  for (int i = 0; i < kMaxPartialBytes && text.ends_with(kReplacement); ++i) {
    text.remove_suffix(kReplacement.size());
  }
  return text.size();
}

}  // namespace

std::string StreamDecoder::Push(int32_t id) {
  // Tokens that show nothing must not stand between the parts of a character.
  const std::string alone = tokenizer_.Decode({&id, 1}, /*skip_special=*/true);
  if (alone.empty() && !tokenizer_.Decode({&id, 1}, /*skip_special=*/false).empty()) return {};

  ids_.push_back(id);
  std::string text = tokenizer_.Decode(ids_, /*skip_special=*/true);
  if (!text.starts_with(shown_)) {
    // A later byte made bytes invalid that were already shown as a character:
    // that cannot be taken back, so decoding starts anew here.
    ids_.assign(1, id);
    shown_.clear();
    text = alone;
  }
  const size_t settled = std::max(SettledBytes(text), shown_.size());
  const std::string fresh = text.substr(shown_.size(), settled - shown_.size());
  shown_.resize(0);
  shown_.append(text, 0, settled);

  // Everything has been shown: forget the past, but keep one token, since text
  // starts otherwise than it continues (a leading space is dropped). A token
  // that is no whole text by itself cannot be that one.
  constexpr size_t kMaxTokens = 64;
  const bool whole = !alone.empty() && alone.find(kReplacement) == std::string::npos &&
                     settled == text.size() && text.ends_with(alone);
  if (whole) {
    ids_.assign(1, id);
    shown_ = alone;
  } else if (ids_.size() > kMaxTokens) {
    // Nothing but broken characters for so long: give up on joining them.
    const std::string rest = text.substr(settled);
    ids_.assign(1, id);
    shown_ = alone;
    return fresh + rest;
  }
  return fresh;
}

std::string StreamDecoder::Finish() {
  const std::string text = tokenizer_.Decode(ids_, /*skip_special=*/true);
  std::string rest = text.starts_with(shown_) ? text.substr(shown_.size()) : std::string();
  ids_.clear();
  shown_.clear();
  return rest;
}

}  // namespace flatquant
