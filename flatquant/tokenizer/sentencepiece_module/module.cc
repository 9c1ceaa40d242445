#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/sentencepiece_module/module_api.h"

struct FlatquantSentencePieceModel {
  sentencepiece::SentencePieceProcessor processor;
};

namespace {

using Model = FlatquantSentencePieceModel;

void Report(const char* reason, char* error, size_t error_size) {
  std::snprintf(error, error_size, "%s", reason);
}

Model* Load(const char* bytes, size_t size, char* error, size_t error_size) {
  try {
    auto model = std::make_unique<Model>();
    const auto status = model->processor.LoadFromSerializedProto(std::string_view(bytes, size));
    if (status.ok()) return model.release();
    Report(status.ToString().c_str(), error, error_size);
  } catch (const std::exception& exception) {
    Report(exception.what(), error, error_size);
  }
  return nullptr;
}

const char* Piece(const Model* model, int id, size_t* size) {
  const std::string& piece = model->processor.IdToPiece(id);
  *size = piece.size();
  return piece.data();
}

bool Encode(const Model* model, const char* text, size_t size,
            void (*append)(void* context, const int* ids, size_t count), void* context, char* error,
            size_t error_size) {
  try {
    std::vector<int> ids;
    const auto status = model->processor.Encode(std::string_view(text, size), &ids);
    if (status.ok()) {
      append(context, ids.data(), ids.size());
      return true;
    }
    Report(status.ToString().c_str(), error, error_size);
  } catch (const std::exception& exception) {
    Report(exception.what(), error, error_size);
  }
  return false;
}

constexpr FlatquantSentencePieceApi kApi = {
    Load,
    [](Model* model) { delete model; },
    [](const Model* model) { return model->processor.GetPieceSize(); },
    Piece,
    [](const Model* model, int id) { return model->processor.IsControl(id); },
    [](const Model* model, int id) { return model->processor.IsUnknown(id); },
    [](const Model* model) { return model->processor.bos_id(); },
    [](const Model* model) { return model->processor.eos_id(); },
    Encode,
};

}  // namespace

extern "C" __attribute__((visibility("default"))) const FlatquantSentencePieceApi*
FlatquantSentencePiece() {
  return &kApi;
}
