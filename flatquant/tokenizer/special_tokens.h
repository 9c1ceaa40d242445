#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/added_tokens.h"
#include "flatquant/tokenizer/json_view.h"
#include "flatquant/tokenizer/post_processor.h"

namespace flatquant::tokenizer {

// The roles that special tokens play.
struct SpecialIds {
  std::optional<int32_t> bos;
  std::optional<int32_t> eos;
  std::vector<int32_t> stops;  // eos first, if there is one
};

// What the small JSON files beside a tokenizer say about special tokens:
// tokenizer_config.json, special_tokens_map.json, generation_config.json,
// config.json. Any of them may be absent. Errors: tokenizer.bad_json, file.*.
class SpecialTokensConfig {
 public:
  explicit SpecialTokensConfig(const std::filesystem::path& directory);

  // "LlamaTokenizer" and the like; empty where it is not said.
  std::string tokenizer_class() const { return tokenizer_["tokenizer_class"].StringOr(""); }
  std::string model_type() const { return model_["model_type"].StringOr(""); }
  std::optional<bool> add_bos() const { return Flag("add_bos_token"); }
  std::optional<bool> add_eos() const { return Flag("add_eos_token"); }

  // The entries of added_tokens_decoder.
  std::vector<AddedToken> AddedTokensDecoder() const;

  // BOS and EOS, from the first file that names them in the order above, BOS
  // also from the template. find: spelling -> id; known: whether an id is one of
  // the tokenizer's (others are taken as unset: models' configs are often wrong).
  SpecialIds Resolve(const std::function<std::optional<int32_t>(std::string_view)>& find,
                     const std::function<bool(int32_t)>& known,
                     const PostProcessor& post_processor) const;

  // What add_bos_token and add_eos_token ask for, with these defaults.
  PostProcessor Wrap(const SpecialIds& ids, bool bos_default, bool eos_default) const;

 private:
  std::optional<bool> Flag(std::string_view key) const;

  JsonFile tokenizer_file_;
  JsonFile map_file_;
  JsonFile generation_file_;
  JsonFile model_file_;
  JsonView tokenizer_;
  JsonView map_;
  JsonView generation_;
  JsonView model_;
};

}  // namespace flatquant::tokenizer
