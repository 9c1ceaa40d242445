#pragma once

#include <string>
#include <string_view>

namespace flatquant::tokenizer {

// What we need of a SentencePiece model file that the library does not tell.
struct SentencePieceSpec {
  bool add_dummy_prefix = true;           // a space in front of every text
  bool remove_extra_whitespaces = true;   // runs of spaces become one
  bool escape_whitespaces = true;         // spaces become U+2581
  std::string_view precompiled_charsmap;  // compiled normalization rules
};

// Walks over the protocol buffer (sentencepiece_model.proto's ModelProto) and
// checks what the library takes on trust: the trie in precompiled_charsmap,
// whose indices it follows without looking at bounds. bytes must outlive the
// result. Errors: tokenizer.bad_model.
SentencePieceSpec InspectSentencePiece(std::string_view bytes, std::string_view where);

}  // namespace flatquant::tokenizer
