#pragma once

#include <string>
#include <string_view>

namespace flatquant::tokenizer {

// What we need of a SentencePiece model file that the library does not tell.
struct SentencePieceSpec {
  bool is_bpe = false;                      // and not the unigram model
  bool add_dummy_prefix = true;             // a space in front of every text
  bool escape_whitespaces = true;           // spaces become U+2581
  bool treat_whitespace_as_suffix = false;  // that space goes behind the text
};

// Walks over the protocol buffer (sentencepiece_model.proto's ModelProto) and
// checks what the library takes on trust: the trie in precompiled_charsmap,
// whose indices it follows without looking at bounds. Errors: tokenizer.bad_model.
SentencePieceSpec InspectSentencePiece(std::string_view bytes, std::string_view where);

}  // namespace flatquant::tokenizer
