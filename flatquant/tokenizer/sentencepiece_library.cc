#include "flatquant/tokenizer/sentencepiece_library.h"

#include <dlfcn.h>

#include "flatquant/base/error.h"

namespace flatquant::tokenizer {
namespace {

constexpr const char* kModule = "libflatquant_sentencepiece.so";
constexpr size_t kErrorSize = 256;

// Its own symbols first, and for nobody else. The sanitizers' run-time forbids
// RTLD_DEEPBIND; their builds keep LibTorch and tokenizer.model apart instead.
constexpr int LoadFlags() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return RTLD_NOW | RTLD_LOCAL;
#else
  return RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif
}

const FlatquantSentencePieceApi* OpenModule() {
  void* module = ::dlopen(kModule, LoadFlags());  // found through the binary's RUNPATH
  void* function = module == nullptr ? nullptr : ::dlsym(module, "FlatquantSentencePiece");
  if (function == nullptr) {
    const char* reason = ::dlerror();
    throw Error("tokenizer.no_sentencepiece", kModule,
                std::string("cannot be loaded: ") + (reason == nullptr ? "unknown" : reason),
                "put it beside the binary and install libsentencepiece0, or use a model with a "
                "tokenizer.json");
  }
  return reinterpret_cast<decltype(&FlatquantSentencePiece)>(function)();
}

[[noreturn]] void BadModel(const std::string& where, const char* reason) {
  throw Error("tokenizer.bad_model", where, reason, "download the tokenizer.model again");
}

}  // namespace

SentencePieceModel SentencePieceModel::Load(std::string_view bytes, const std::string& where) {
  static const FlatquantSentencePieceApi* api = OpenModule();
  char error[kErrorSize] = "";
  Handle model(api->load(bytes.data(), bytes.size(), error, sizeof(error)), api->unload);
  if (model == nullptr) BadModel(where, error);
  return {api, std::move(model), where};
}

std::string_view SentencePieceModel::piece(int id) const {
  size_t size = 0;
  const char* data = api_->piece(model_.get(), id, &size);
  return {data, size};
}

void SentencePieceModel::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  char error[kErrorSize] = "";
  const auto append = [](void* context, const int* found, size_t count) {
    auto* out = static_cast<std::vector<int32_t>*>(context);
    out->insert(out->end(), found, found + count);
  };
  if (!api_->encode(model_.get(), text.data(), text.size(), append, ids, error, sizeof(error))) {
    BadModel(where_, error);
  }
}

}  // namespace flatquant::tokenizer
