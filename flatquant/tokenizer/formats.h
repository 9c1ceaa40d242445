#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "flatquant/tokenizer/special_tokens.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant::tokenizer {

// One reader per file format. Each throws flatquant::Error for what it cannot
// take: tokenizer.bad_json, tokenizer.bad_vocab, tokenizer.bad_merge,
// tokenizer.bad_regex, tokenizer.bad_ranks, tokenizer.bad_model,
// tokenizer.unsupported, file.*.

// tokenizer.json of Hugging Face's tokenizers library.
std::unique_ptr<Tokenizer> ReadTokenizerJson(const std::filesystem::path& file,
                                             const SpecialTokensConfig& config);

// GPT-2's vocab.json and merges.txt, as Qwen2 still publishes them.
std::unique_ptr<Tokenizer> ReadVocabAndMerges(const std::filesystem::path& vocab,
                                              const std::filesystem::path& merges,
                                              const SpecialTokensConfig& config);

// Whether a tokenizer.model holds tiktoken ranks: lines of base64 and a rank.
bool LooksLikeRanks(std::string_view bytes);

// The rank file of Llama 3, with its 256 special tokens behind the ranks.
std::unique_ptr<Tokenizer> ReadRanks(std::string_view bytes, const std::filesystem::path& file,
                                     const SpecialTokensConfig& config);

// A SentencePiece model.
std::unique_ptr<Tokenizer> ReadSentencePiece(std::string_view bytes,
                                             const std::filesystem::path& file,
                                             const SpecialTokensConfig& config);

}  // namespace flatquant::tokenizer
