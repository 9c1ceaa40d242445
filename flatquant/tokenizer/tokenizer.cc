#include "flatquant/tokenizer/tokenizer.h"

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/tokenizer/formats.h"

namespace flatquant {
namespace fs = std::filesystem;

std::unique_ptr<Tokenizer> Tokenizer::Open(const fs::path& directory) {
  constexpr size_t kMaxModelBytes = size_t{1} << 28;  // real ones have a few MB
  const tokenizer::SpecialTokensConfig config(directory);
  if (const fs::path file = directory / "tokenizer.json"; fs::exists(file)) {
    return tokenizer::ReadTokenizerJson(file, config);
  }
  if (const fs::path file = directory / "tokenizer.model"; fs::exists(file)) {
    const std::string bytes = ReadFile(file, kMaxModelBytes);
    return tokenizer::LooksLikeRanks(bytes) ? tokenizer::ReadRanks(bytes, file, config)
                                            : tokenizer::ReadSentencePiece(bytes, file, config);
  }
  const fs::path vocab = directory / "vocab.json";
  const fs::path merges = directory / "merges.txt";
  if (fs::exists(vocab) && fs::exists(merges)) {
    return tokenizer::ReadVocabAndMerges(vocab, merges, config);
  }
  throw Error("tokenizer.missing", directory.string(),
              "no tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
              "copy the tokenizer files of the model there");
}

}  // namespace flatquant
