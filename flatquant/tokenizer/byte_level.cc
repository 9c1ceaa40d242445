#include "flatquant/tokenizer/byte_level.h"

#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Table {
  std::array<char32_t, 256> to_char;
  std::array<int16_t, 256 + 68> to_byte;

  constexpr Table() : to_char(), to_byte() {
    to_byte.fill(-1);
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      to_char[byte] = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
      to_byte[to_char[byte]] = static_cast<int16_t>(byte);
    }
  }
};

constexpr Table kTable;

}  // namespace

const std::array<char32_t, 256>& ByteToChar() { return kTable.to_char; }

int CharToByte(char32_t code) { return code < kTable.to_byte.size() ? kTable.to_byte[code] : -1; }

std::string BytesToPrintable(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 4);
  for (const char byte : bytes) AppendUtf8(kTable.to_char[static_cast<unsigned char>(byte)], &out);
  return out;
}

bool PrintableToBytes(std::string_view printable, std::string* bytes) {
  bytes->clear();
  for (size_t at = 0; at < printable.size();) {
    const Utf8Char c = DecodeUtf8(printable, at);
    const int byte = CharToByte(c.code);
    if (byte < 0) return false;
    bytes->push_back(static_cast<char>(byte));
    at += c.length;
  }
  return true;
}

}  // namespace flatquant::tokenizer
