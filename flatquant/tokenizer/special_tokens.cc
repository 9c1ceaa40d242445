#include "flatquant/tokenizer/special_tokens.h"

#include <algorithm>
#include <charconv>

namespace flatquant::tokenizer {
namespace {

// A special token is written as its spelling or as an object with "content".
std::optional<std::string> Spelling(const JsonView& json) {
  if (json.missing()) return std::nullopt;
  return json.IsObject() ? json["content"].String() : json.String();
}

// An id, a list of ids or nothing.
std::vector<int32_t> Ids(const JsonView& json, const std::function<bool(int32_t)>& known) {
  std::vector<int32_t> ids;
  const auto add = [&](const JsonView& item) {
    const int64_t id = item.Integer();
    if (id >= 0 && id <= kMaxTokenId && known(static_cast<int32_t>(id))) {
      ids.push_back(static_cast<int32_t>(id));
    }
  };
  if (json.IsArray()) {
    for (const JsonView& item : json.Items()) add(item);
  } else if (!json.missing()) {
    add(json);
  }
  return ids;
}

}  // namespace

SpecialTokensConfig::SpecialTokensConfig(const std::filesystem::path& directory)
    : tokenizer_file_(JsonFile::ReadIfPresent(directory / "tokenizer_config.json")),
      map_file_(JsonFile::ReadIfPresent(directory / "special_tokens_map.json")),
      generation_file_(JsonFile::ReadIfPresent(directory / "generation_config.json")),
      model_file_(JsonFile::ReadIfPresent(directory / "config.json")),
      tokenizer_(tokenizer_file_.root()),
      map_(map_file_.root()),
      generation_(generation_file_.root()),
      model_(model_file_.root()) {}

std::optional<bool> SpecialTokensConfig::Flag(std::string_view key) const {
  const JsonView flag = tokenizer_[key];
  if (flag.missing()) return std::nullopt;
  return flag.Bool();
}

std::vector<AddedToken> SpecialTokensConfig::AddedTokensDecoder() const {
  std::vector<AddedToken> tokens;
  const JsonView table = tokenizer_["added_tokens_decoder"];
  if (table.missing()) return tokens;
  for (const auto& [key, value] : table.Object().items()) {
    const JsonView entry = table[key];
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0) {
      entry.Fail("has a key that is no token id");
    }
    tokens.push_back(AddedToken::Parse(entry, id));
  }
  std::sort(tokens.begin(), tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  return tokens;
}

SpecialIds SpecialTokensConfig::Resolve(
    const std::function<std::optional<int32_t>(std::string_view)>& find,
    const std::function<bool(int32_t)>& known, const PostProcessor& post_processor) const {
  const auto named = [&](std::string_view key) -> std::optional<int32_t> {
    for (const JsonView* file : {&tokenizer_, &map_}) {
      if (const auto spelling = Spelling((*file)[key])) {
        if (const auto id = find(*spelling)) return id;
      }
    }
    return std::nullopt;
  };
  const auto numbered = [&](std::string_view key) {
    std::vector<int32_t> ids = Ids(generation_[key], known);
    const std::vector<int32_t> more = Ids(model_[key], known);
    ids.insert(ids.end(), more.begin(), more.end());
    return ids;
  };

  SpecialIds result;
  result.bos = named("bos_token");
  // An explicit null means that the model has no BOS, whatever its config says.
  const bool no_bos = tokenizer_.Has("bos_token") && tokenizer_["bos_token"].missing();
  if (!result.bos && !no_bos) {
    const std::vector<int32_t> ids = numbered("bos_token_id");
    if (!post_processor.prefix.empty()) {
      result.bos = post_processor.prefix.front();
    } else if (!ids.empty()) {
      result.bos = ids.front();
    }
  }
  result.eos = named("eos_token");
  const std::vector<int32_t> ends = numbered("eos_token_id");
  if (!result.eos && !ends.empty()) result.eos = ends.front();
  if (result.eos) result.stops.push_back(*result.eos);
  for (const int32_t id : ends) {
    if (std::find(result.stops.begin(), result.stops.end(), id) == result.stops.end()) {
      result.stops.push_back(id);
    }
  }
  return result;
}

PostProcessor SpecialTokensConfig::Wrap(const SpecialIds& ids, bool bos_default,
                                        bool eos_default) const {
  PostProcessor result;
  if (ids.bos && add_bos().value_or(bos_default)) result.prefix.push_back(*ids.bos);
  if (ids.eos && add_eos().value_or(eos_default)) result.suffix.push_back(*ids.eos);
  return result;
}

}  // namespace flatquant::tokenizer
