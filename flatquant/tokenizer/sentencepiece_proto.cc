#include "flatquant/tokenizer/sentencepiece_proto.h"

#include <cstdint>
#include <cstring>

#include "flatquant/base/error.h"

namespace flatquant::tokenizer {
namespace {

[[noreturn]] void Fail(std::string_view where, std::string_view what) {
  throw Error("tokenizer.bad_model", where, what, "download the tokenizer.model again");
}

// Protocol buffer wire format: a sequence of (field number << 3 | wire type)
// and a value.
class WireReader {
 public:
  struct Field {
    uint32_t number;
    uint64_t varint = 0;     // of wire type 0
    std::string_view bytes;  // of wire type 2
  };

  WireReader(std::string_view bytes, std::string_view where) : rest_(bytes), where_(where) {}

  bool Next(Field* field) {
    if (rest_.empty()) return false;
    const uint64_t tag = Varint();
    *field = {static_cast<uint32_t>(tag >> 3), 0, {}};
    switch (tag & 7) {
      case 0:
        field->varint = Varint();
        break;
      case 1:
        Take(8);
        break;
      case 2:
        field->bytes = Take(Varint());
        break;
      case 5:
        Take(4);
        break;
      default:
        Fail(where_, "not a SentencePiece model: unknown wire type");
    }
    return true;
  }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(Take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    Fail(where_, "not a SentencePiece model: a number without end");
  }

  std::string_view Take(uint64_t n) {
    if (n > rest_.size()) Fail(where_, "not a SentencePiece model, or cut short");
    const std::string_view taken = rest_.substr(0, n);
    rest_.remove_prefix(n);
    return taken;
  }

  std::string_view rest_;
  std::string_view where_;
};

// Layout: uint32 size of the trie in bytes, the trie (a double array of uint32
// units), then NUL-terminated replacement strings that its values point to.
void CheckCharsMap(std::string_view map, std::string_view where) {
  if (map.empty()) return;
  uint32_t trie_bytes = 0;
  if (map.size() < sizeof(trie_bytes)) Fail(where, "the normalization table is cut short");
  std::memcpy(&trie_bytes, map.data(), sizeof(trie_bytes));
  map.remove_prefix(sizeof(trie_bytes));
  if (trie_bytes >= map.size() || trie_bytes % 4 != 0 || trie_bytes < 1024) {
    Fail(where, "the normalization table has a wrong size");
  }
  const std::string_view strings = map.substr(trie_bytes);
  if (strings.back() != '\0') Fail(where, "the normalization table's strings do not end");
  const uint32_t units = trie_bytes / 4;
  for (uint32_t at = 0; at < units; ++at) {
    uint32_t unit = 0;
    std::memcpy(&unit, map.data() + size_t{at} * 4, 4);
    if ((unit >> 31) != 0) {  // a leaf: the low 31 bits are its value
      if ((unit & 0x7fffffffu) >= strings.size()) {
        Fail(where, "the normalization table points past its strings");
      }
      continue;
    }
    // An inner unit: its children stand at base ^ byte, for any byte.
    const uint32_t offset = (unit >> 10) << ((unit & 0x200u) >> 6);
    const uint32_t base = at ^ offset;
    if ((base | 255u) >= units) Fail(where, "the normalization table points past its end");
  }
}

}  // namespace

SentencePieceSpec InspectSentencePiece(std::string_view bytes, std::string_view where) {
  constexpr uint32_t kTrainerSpec = 2;
  constexpr uint32_t kNormalizerSpec = 3;
  constexpr uint32_t kDenormalizerSpec = 5;
  constexpr uint64_t kBpe = 2;  // TrainerSpec.ModelType
  SentencePieceSpec spec;
  WireReader model(bytes, where);
  WireReader::Field message;
  while (model.Next(&message)) {
    if (message.number != kTrainerSpec && message.number != kNormalizerSpec &&
        message.number != kDenormalizerSpec) {
      continue;
    }
    WireReader reader(message.bytes, where);
    WireReader::Field field;
    while (reader.Next(&field)) {
      if (message.number == kTrainerSpec) {
        if (field.number == 3) spec.is_bpe = field.varint == kBpe;
        if (field.number == 24) spec.treat_whitespace_as_suffix = field.varint != 0;
        continue;
      }
      if (field.number == 2) CheckCharsMap(field.bytes, where);
      if (message.number == kDenormalizerSpec) continue;
      if (field.number == 3) spec.add_dummy_prefix = field.varint != 0;
      if (field.number == 5) spec.escape_whitespaces = field.varint != 0;
    }
  }
  return spec;
}

}  // namespace flatquant::tokenizer
