#include "flatquant/tokenizer/bpe_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <cstring>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

std::string ByteToken(int byte) {
  char text[8];
  std::snprintf(text, sizeof(text), "<0x%02X>", byte);
  return text;
}

uint64_t HashBytes(std::string_view text) {
  uint64_t hash = text.size() * 0x9e3779b97f4a7c15u;
  size_t at = 0;
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    hash = (std::rotl(hash, 23) ^ word) * 0x9e3779b97f4a7c15u;
  }
  uint64_t word = 0;
  if (at < text.size()) std::memcpy(&word, text.data() + at, text.size() - at);
  hash = (std::rotl(hash, 23) ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

void CheckIds(const TokenMap& vocab, const std::string& where) {
  std::vector<const std::string*> seen;  // by id
  for (const auto& [token, id] : vocab) {
    if (id < 0 || id > kMaxTokenId) {
      throw Error("tokenizer.bad_vocab", where,
                  "token \"" + token + "\" has id " + std::to_string(id) + ", outside 0.." +
                      std::to_string(kMaxTokenId),
                  "download the tokenizer's files again");
    }
    if (static_cast<size_t>(id) >= seen.size()) seen.resize(id + 1);
    const std::string* other = std::exchange(seen[id], &token);
    if (other != nullptr) {
      throw Error("tokenizer.bad_vocab", where,
                  "tokens \"" + *other + "\" and \"" + token + "\" share id " + std::to_string(id),
                  "download the tokenizer's files again");
    }
  }
}

}  // namespace

// Code point -> token id through pages of 256, most of which do not exist.
class BpeModel::CharTable {
 public:
  void Set(char32_t code, int32_t id) {
    uint32_t& page = pages_[code >> 8];
    if (page == 0) {
      ids_.resize(ids_.size() + 256, -1);
      page = static_cast<uint32_t>(ids_.size() / 256 - 1);
    }
    ids_[page * 256 + (code & 255)] = id;
  }
  int32_t Get(char32_t code) const { return ids_[pages_[code >> 8] * 256 + (code & 255)]; }

 private:
  std::array<uint32_t, 0x1100> pages_{};
  std::vector<int32_t> ids_ = std::vector<int32_t>(256, -1);  // page 0 is the empty one
};

// A set of pairs of code points: a bit table for ASCII, hashing for the rest.
class BpeModel::PairSet {
 public:
  void Add(char32_t a, char32_t b) {
    if (a < 128 && b < 128) {
      ascii_[a * 128 + b] = true;
    } else {
      pairs_.push_back(static_cast<uint64_t>(a) << 32 | b);
    }
  }
  void Seal() {
    std::sort(pairs_.begin(), pairs_.end());
    pairs_.erase(std::unique(pairs_.begin(), pairs_.end()), pairs_.end());
    const size_t capacity = std::bit_ceil(pairs_.size() * 2 + 16);
    shift_ = 64 - std::countr_zero(capacity);
    slots_.assign(capacity, kEmpty);
    for (const uint64_t pair : pairs_) {
      size_t at = Slot(pair);
      while (slots_[at] != kEmpty) at = (at + 1) & (capacity - 1);
      slots_[at] = pair;
    }
    pairs_ = {};
  }
  bool Has(char32_t a, char32_t b) const {
    if (a < 128 && b < 128) return ascii_[a * 128 + b];
    const uint64_t pair = static_cast<uint64_t>(a) << 32 | b;
    for (size_t at = Slot(pair);; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at] == pair) return true;
      if (slots_[at] == kEmpty) return false;
    }
  }

 private:
  static constexpr uint64_t kEmpty = UINT64_MAX;
  size_t Slot(uint64_t pair) const { return (pair ^ pair >> 23) * 0x9e3779b97f4a7c15u >> shift_; }

  std::vector<bool> ascii_ = std::vector<bool>(128 * 128);
  std::vector<uint64_t> pairs_;
  std::vector<uint64_t> slots_;
  int shift_ = 63;
};

BpeModel::BpeModel(BpeSpec spec)
    : vocab_(std::move(spec.vocab)),
      byte_level_(spec.byte_level),
      byte_fallback_(spec.byte_fallback),
      fuse_unk_(spec.fuse_unk),
      ignore_merges_(spec.ignore_merges),
      unk_(spec.unk) {
  CheckIds(vocab_, spec.where);
  merges_ = MergeTable(spec.merges);
  byte_ids_.assign(256, -1);
  if (byte_level_) {
    std::string bytes;
    for (const auto& [token, id] : vocab_) {
      if (!PrintableToBytes(token, &bytes)) continue;
      if (bytes.size() == 1) byte_ids_[static_cast<unsigned char>(bytes[0])] = id;
      if (ignore_merges_) whole_.emplace(bytes, id);
    }
    return;
  }
  chars_ = std::make_unique<CharTable>();
  for (const auto& [token, id] : vocab_) {
    if (token.empty()) continue;
    const Utf8Char c = DecodeUtf8(token, 0);
    if (c.length == token.size()) chars_->Set(c.code, id);
  }
  if (byte_fallback_) {
    for (int byte = 0; byte < 256; ++byte) byte_ids_[byte] = Find(ByteToken(byte)).value_or(-1);
  }
  CollectInnerPairs(spec.merges);
}

BpeModel::~BpeModel() = default;

std::optional<int32_t> BpeModel::Find(std::string_view spelling) const {
  const auto found = vocab_.find(spelling);
  if (found == vocab_.end()) return std::nullopt;
  return found->second;
}

void BpeModel::CollectInnerPairs(const std::vector<Merge>& merges) {
  // Merges of byte or unknown tokens join characters whose spelling the token
  // does not show, so that nothing can be said about pairs.
  std::vector<int32_t> opaque = byte_ids_;
  if (unk_) opaque.push_back(*unk_);
  std::sort(opaque.begin(), opaque.end());
  const auto is_opaque = [&](int32_t id) {
    return std::binary_search(opaque.begin(), opaque.end(), id);
  };
  std::vector<bool> made;
  for (const Merge& merge : merges) {
    if (is_opaque(merge.left) || is_opaque(merge.right)) return;
    if (static_cast<size_t>(merge.merged) >= made.size()) made.resize(merge.merged + 1);
    made[merge.merged] = true;
  }
  inner_pairs_ = std::make_unique<PairSet>();
  for (const auto& [token, id] : vocab_) {
    if (static_cast<size_t>(id) >= made.size() || !made[id]) continue;
    char32_t previous = 0;
    for (size_t at = 0; at < token.size();) {
      const Utf8Char c = DecodeUtf8(token, at);
      if (at > 0) inner_pairs_->Add(previous, c.code);
      previous = c.code;
      at += c.length;
    }
  }
  inner_pairs_->Seal();
}

void BpeModel::Session::Encode(std::string_view piece, std::vector<int32_t>* ids) {
  if (piece.empty()) return;
  if (model_.ignore_merges_) {
    const TokenMap& whole = model_.byte_level_ ? model_.whole_ : model_.vocab_;
    const auto found = whole.find(piece);
    if (found != whole.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  if (model_.byte_level_ || !model_.inner_pairs_) {
    EncodeUnit(piece, ids);
    return;
  }
  // Cut wherever no token spans two neighbours. Unknown characters that fuse
  // into one token must stay together.
  const BpeModel& model = model_;
  const auto may_fuse = [&](char32_t code) { return model.unk_ && model.chars_->Get(code) < 0; };
  size_t start = 0;
  Utf8Char previous = DecodeUtf8(piece, 0);
  for (size_t at = previous.length; at < piece.size();) {
    const Utf8Char c = DecodeUtf8(piece, at);
    if (!model.inner_pairs_->Has(previous.code, c.code) &&
        !(may_fuse(previous.code) && may_fuse(c.code))) {
      EncodeUnit(piece.substr(start, at - start), ids);
      start = at;
    }
    previous = c;
    at += c.length;
  }
  EncodeUnit(piece.substr(start), ids);
}

void BpeModel::Session::EncodeUnit(std::string_view unit, std::vector<int32_t>* ids) {
  // Remembering pays once a text has some words; short prompts need no table.
  constexpr size_t kSlots = 4096;
  constexpr size_t kWarmUp = 256;
  if (slots_.empty() && ++units_ > kWarmUp) slots_.resize(kSlots);
  const bool remember = !slots_.empty() && unit.size() <= Slot::kMaxText;
  Slot* slot = nullptr;
  if (remember) {
    slot = &slots_[HashBytes(unit) % kSlots];
    if (slot->text_size == unit.size() && std::memcmp(slot->text, unit.data(), unit.size()) == 0) {
      ids->insert(ids->end(), slot->ids, slot->ids + slot->id_count);
      return;
    }
  }
  symbols_.clear();
  if (model_.byte_level_) {
    EncodeBytes(unit);
  } else {
    EncodeChars(unit);
  }
  model_.merges_.Apply(&symbols_);
  ids->insert(ids->end(), symbols_.begin(), symbols_.end());
  if (remember && symbols_.size() <= Slot::kMaxIds) {
    std::copy(symbols_.begin(), symbols_.end(), slot->ids);
    slot->id_count = static_cast<uint8_t>(symbols_.size());
    slot->text_size = static_cast<uint8_t>(unit.size());
    std::memcpy(slot->text, unit.data(), unit.size());
  }
}

void BpeModel::Session::EncodeBytes(std::string_view piece) {
  for (const char c : piece) {
    const int32_t id = model_.byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) {
      symbols_.push_back(id);
    } else if (model_.unk_) {
      if (!model_.fuse_unk_ || symbols_.empty() || symbols_.back() != *model_.unk_) {
        symbols_.push_back(*model_.unk_);
      }
    }
  }
}

void BpeModel::Session::EncodeChars(std::string_view piece) {
  // An unknown token waits until the next known character, so that fusing ones
  // give a single token; bytes go before it, as in Hugging Face's library.
  bool unknown = false;
  for (size_t at = 0; at < piece.size();) {
    const Utf8Char c = DecodeUtf8(piece, at);
    const std::string_view bytes = piece.substr(at, c.length);
    at += c.length;
    const int32_t id = model_.chars_->Get(c.code);
    if (id >= 0) {
      if (unknown) symbols_.push_back(*model_.unk_);
      unknown = false;
      symbols_.push_back(id);
      continue;
    }
    const auto byte_id = [&](char byte) {
      return model_.byte_ids_[static_cast<unsigned char>(byte)];
    };
    if (model_.byte_fallback_ &&
        std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte_id(byte) >= 0; })) {
      for (const char byte : bytes) symbols_.push_back(byte_id(byte));
      continue;
    }
    if (!model_.unk_) continue;
    if (unknown && !model_.fuse_unk_) symbols_.push_back(*model_.unk_);
    unknown = true;
  }
  if (unknown) symbols_.push_back(*model_.unk_);
}

}  // namespace flatquant::tokenizer
