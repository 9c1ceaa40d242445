#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flatquant/tokenizer/merges.h"

namespace flatquant::tokenizer {

// Ids are array indices here, so a file's ids are bounded: four times the
// largest vocabulary in use.
constexpr int64_t kMaxTokenId = (int64_t{1} << 22) - 1;

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using TokenMap = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

// A BPE model as a file describes it, checked by BpeModel's constructor.
struct BpeSpec {
  std::string where;  // the file, for messages
  TokenMap vocab;     // spelling -> id; printable spelling for byte-level models
  std::vector<Merge> merges;
  bool byte_level = false;     // pieces are raw bytes, spellings the printable form
  bool byte_fallback = false;  // unknown characters become tokens <0x00> .. <0xFF>
  bool fuse_unk = false;       // consecutive unknown characters give one unk token
  bool ignore_merges = false;  // a piece that is a token is taken whole
  std::optional<int32_t> unk;
};

// Byte-pair encoding of pieces of text. Immutable.
class BpeModel {
 public:
  // Errors: tokenizer.bad_vocab for ids out of range or used twice.
  explicit BpeModel(BpeSpec spec);
  ~BpeModel();

  // Encodes pieces one after another, remembering recent short ones. Make one
  // per text; it holds the model by reference.
  class Session {
   public:
    explicit Session(const BpeModel& model) : model_(model) {}
    // piece: valid UTF-8, or raw bytes for a byte-level model.
    void Encode(std::string_view piece, std::vector<int32_t>* ids);

   private:
    // A remembered unit: 64 bytes, so that a look-up touches one cache line.
    struct Slot {
      static constexpr size_t kMaxText = 26;
      static constexpr size_t kMaxIds = 9;
      int32_t ids[kMaxIds];
      uint8_t text_size = 0;  // 0: unused
      uint8_t id_count = 0;
      char text[kMaxText];
    };

    void EncodeUnit(std::string_view unit, std::vector<int32_t>* ids);
    void EncodeBytes(std::string_view piece);
    void EncodeChars(std::string_view piece);

    const BpeModel& model_;
    std::vector<int32_t> symbols_;
    size_t units_ = 0;
    std::vector<Slot> slots_;  // direct-mapped by hash; empty for short texts
  };

  std::optional<int32_t> Find(std::string_view spelling) const;
  const TokenMap& vocab() const { return vocab_; }

 private:
  class CharTable;
  class PairSet;

  void CollectInnerPairs(const std::vector<Merge>& merges);

  TokenMap vocab_;
  MergeTable merges_;
  bool byte_level_;
  bool byte_fallback_;
  bool fuse_unk_;
  bool ignore_merges_;
  std::optional<int32_t> unk_;
  std::vector<int32_t> byte_ids_;     // [256]: of a byte (byte_level) or of <0xNN>; -1: none
  TokenMap whole_;                    // raw bytes -> id, for ignore_merges of byte-level models
  std::unique_ptr<CharTable> chars_;  // code point -> id, for other models
  // Pairs of characters that stand side by side inside some token. Between any
  // other two characters no merge can happen, so a text may be cut there.
  // Absent where such cuts could change the result.
  std::unique_ptr<PairSet> inner_pairs_;
};

}  // namespace flatquant::tokenizer
