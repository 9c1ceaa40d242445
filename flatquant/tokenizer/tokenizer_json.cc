#include "flatquant/tokenizer/formats.h"
#include "flatquant/tokenizer/pipeline_tokenizer.h"
#include "flatquant/tokenizer/vocab_json.h"

namespace flatquant::tokenizer {
namespace {

void CheckModelType(const JsonView& model) {
  // Files of early library versions leave the type out; BPE alone has merges.
  const JsonView type = model["type"];
  const std::string name = type.missing() && model.Has("merges") ? "BPE" : type.String();
  if (name != "BPE") type.Unsupported("the model \"" + name + "\"");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model[affix].StringOr("").empty()) model[affix].Unsupported("a word affix");
  }
}

std::vector<Merge> ParseMerges(const JsonView& json, const TokenMap& vocab) {
  MergeParser parser(vocab, json.where());
  for (const nlohmann::json& merge : json.Array()) {
    if (merge.is_string()) {
      parser.AddLine(merge.get_ref<const std::string&>());
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      parser.Add(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
    } else {
      json.Fail("should hold strings \"a b\" or pairs [\"a\", \"b\"]");
    }
  }
  return parser.Take();
}

std::unique_ptr<BpeModel> ParseModel(const JsonView& json, bool byte_level) {
  CheckModelType(json);
  BpeSpec spec;
  spec.where = json["vocab"].where();
  spec.vocab = ParseVocab(json["vocab"]);
  spec.merges = ParseMerges(json["merges"], spec.vocab);
  spec.byte_level = byte_level;
  spec.byte_fallback = json["byte_fallback"].BoolOr(false);
  spec.fuse_unk = json["fuse_unk"].BoolOr(false);
  spec.ignore_merges = json["ignore_merges"].BoolOr(false);
  if (const JsonView unk = json["unk_token"]; !unk.missing()) {
    const auto found = spec.vocab.find(unk.String());
    if (found != spec.vocab.end()) spec.unk = found->second;
  }
  return std::make_unique<BpeModel>(std::move(spec));
}

std::vector<AddedToken> ParseAddedTokens(const JsonView& json) {
  std::vector<AddedToken> tokens;
  if (json.missing()) return tokens;
  for (const JsonView& item : json.Items()) {
    const int64_t id = item["id"].Integer();
    if (id < 0 || id > kMaxTokenId) item["id"].Fail("is no token id");
    tokens.push_back(AddedToken::Parse(item, static_cast<int32_t>(id)));
  }
  return tokens;
}

// These classes rebuild the template from add_bos_token and add_eos_token.
bool ClassOverridesTemplate(const std::string& name) {
  return name.starts_with("Llama") || name.starts_with("CodeLlama") || name.starts_with("Gemma");
}

}  // namespace

std::unique_ptr<Tokenizer> ReadTokenizerJson(const std::filesystem::path& path,
                                             const SpecialTokensConfig& config) {
  const JsonFile file = JsonFile::Read(path);
  const JsonView json = file.root();
  PipelineParts parts;
  parts.normalizer = ParseNormalizer(json["normalizer"]);
  parts.pre_tokenizer = PreTokenizer::Parse(json["pre_tokenizer"]);
  parts.model = ParseModel(json["model"], parts.pre_tokenizer.byte_level());
  parts.decoder = Decoder::Parse(json["decoder"]);
  parts.added = AddedTokens(ParseAddedTokens(json["added_tokens"]), parts.model->vocab(),
                            parts.normalizer.get(), path.string());
  parts.vocabulary = Vocabulary(parts.model->vocab(), parts.added.tokens());
  const auto known = [&](int32_t id) { return parts.vocabulary.Has(id); };
  parts.post_processor = PostProcessor::Parse(json["post_processor"], known);

  parts.specials = config.Resolve(
      [&](std::string_view spelling) { return parts.added.Find(spelling, parts.model->vocab()); },
      known, parts.post_processor);
  if (ClassOverridesTemplate(config.tokenizer_class()) && (config.add_bos() || config.add_eos())) {
    parts.post_processor = config.Wrap(parts.specials, !parts.post_processor.prefix.empty(),
                                       !parts.post_processor.suffix.empty());
  }
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace flatquant::tokenizer
