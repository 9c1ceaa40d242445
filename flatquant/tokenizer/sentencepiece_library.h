#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/sentencepiece_module/module_api.h"

namespace flatquant::tokenizer {

// libsentencepiece, loaded on first use (module_api.h says why it is not linked).
class SentencePieceModel {
 public:
  // bytes: a serialized ModelProto; where: names its file in errors.
  // Errors: tokenizer.bad_model, tokenizer.no_sentencepiece (the module or the
  // library is not installed).
  static SentencePieceModel Load(std::string_view bytes, const std::string& where);

  int size() const { return api_->piece_count(model_.get()); }
  std::string_view piece(int id) const;  // id in [0, size())
  bool IsControl(int id) const { return api_->is_control(model_.get(), id); }
  bool IsUnknown(int id) const { return api_->is_unknown(model_.get(), id); }
  int bos() const { return api_->bos(model_.get()); }  // -1: none
  int eos() const { return api_->eos(model_.get()); }

  // Appends the text's ids. Errors: tokenizer.bad_model.
  void Encode(std::string_view text, std::vector<int32_t>* ids) const;

 private:
  using Handle =
      std::unique_ptr<FlatquantSentencePieceModel, void (*)(FlatquantSentencePieceModel*)>;
  SentencePieceModel(const FlatquantSentencePieceApi* api, Handle model, std::string where)
      : api_(api), model_(std::move(model)), where_(std::move(where)) {}

  const FlatquantSentencePieceApi* api_;
  Handle model_;
  std::string where_;
};

}  // namespace flatquant::tokenizer
