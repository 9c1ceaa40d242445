#pragma once

#include <cstddef>
#include <cstdint>

// The C boundary of the module around libsentencepiece.
//
// Debian's libsentencepiece exports its own copy of Protocol Buffers under the
// names of libprotobuf's, which LibTorch brings along; one process cannot link
// both. So the library lives behind this boundary in a module that is loaded with
// its symbols kept to itself, when a tokenizer.model is first opened.
extern "C" {

struct FlatquantSentencePieceModel;  // a loaded model

// All functions are thread-safe on a loaded model; none throws.
struct FlatquantSentencePieceApi {
  // From a serialized ModelProto. nullptr on failure, with the reason in error
  // (NUL-terminated, cut to error_size).
  FlatquantSentencePieceModel* (*load)(const char* bytes, size_t size, char* error,
                                       size_t error_size);
  void (*unload)(FlatquantSentencePieceModel* model);

  int (*piece_count)(const FlatquantSentencePieceModel* model);
  // Valid as long as the model; id in [0, piece_count).
  const char* (*piece)(const FlatquantSentencePieceModel* model, int id, size_t* size);
  bool (*is_control)(const FlatquantSentencePieceModel* model, int id);
  bool (*is_unknown)(const FlatquantSentencePieceModel* model, int id);
  int (*bos)(const FlatquantSentencePieceModel* model);  // -1: none
  int (*eos)(const FlatquantSentencePieceModel* model);

  // Calls append(context, ids, count) once with the ids of a text. False on
  // failure, with the reason in error.
  bool (*encode)(const FlatquantSentencePieceModel* model, const char* text, size_t size,
                 void (*append)(void* context, const int* ids, size_t count), void* context,
                 char* error, size_t error_size);
};

// The module's one exported function.
const FlatquantSentencePieceApi* FlatquantSentencePiece();
}
