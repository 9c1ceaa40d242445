#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace flatquant::tokenizer {

// GPT-2's bijection between bytes and printable characters: '!'..'~' and the
// printable part of Latin-1 stand for themselves, the other 68 bytes are, in
// order, U+0100 and on. Vocabularies of byte-level BPE are written in it.
const std::array<char32_t, 256>& ByteToChar();

// The byte that a character stands for, or -1.
int CharToByte(char32_t code);

// Raw bytes -> the printable spelling.
std::string BytesToPrintable(std::string_view bytes);

// The printable spelling (valid UTF-8) -> raw bytes. False, with *bytes
// unspecified, when a character stands for no byte.
bool PrintableToBytes(std::string_view printable, std::string* bytes);

}  // namespace flatquant::tokenizer
