#include "flatquant/base/file.h"
#include "flatquant/tokenizer/formats.h"
#include "flatquant/tokenizer/pipeline_tokenizer.h"
#include "flatquant/tokenizer/vocab_json.h"

namespace flatquant::tokenizer {
namespace {

constexpr size_t kMaxMergesBytes = size_t{1} << 27;  // real ones have a few MB

std::vector<Merge> ReadMerges(const std::filesystem::path& path, const TokenMap& vocab) {
  const std::string text = ReadFile(path, kMaxMergesBytes);
  MergeParser parser(vocab, path.string());
  bool first = true;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    std::string_view line(text.data() + at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    // The version line, which only the first line can be: '#' is a token too.
    const bool version = first && line.starts_with("#version");
    if (!line.empty() && !version) parser.AddLine(line);
    first = false;
    at = end + 1;
  }
  return parser.Take();
}

}  // namespace

std::unique_ptr<Tokenizer> ReadVocabAndMerges(const std::filesystem::path& vocab,
                                              const std::filesystem::path& merges,
                                              const SpecialTokensConfig& config) {
  const JsonFile vocab_file = JsonFile::Read(vocab);
  BpeSpec spec;
  spec.where = vocab.string();
  spec.vocab = ParseVocab(vocab_file.root());
  spec.merges = ReadMerges(merges, spec.vocab);
  spec.byte_level = true;

  const bool qwen =
      config.tokenizer_class().starts_with("Qwen2") || config.model_type().starts_with("qwen");
  PipelineParts parts;
  if (qwen) parts.normalizer = MakeNfcNormalizer();
  parts.pre_tokenizer = PreTokenizer::ByteLevel(qwen ? kQwen2Pattern : kGpt2Pattern);
  parts.model = std::make_unique<BpeModel>(std::move(spec));
  parts.decoder = Decoder::ByteLevel();
  parts.added = AddedTokens(config.AddedTokensDecoder(), parts.model->vocab(),
                            parts.normalizer.get(), vocab.string());
  parts.vocabulary = Vocabulary(parts.model->vocab(), parts.added.tokens());
  parts.specials = config.Resolve(
      [&](std::string_view spelling) { return parts.added.Find(spelling, parts.model->vocab()); },
      [&](int32_t id) { return parts.vocabulary.Has(id); }, parts.post_processor);
  parts.always_find_added = false;
  parts.post_processor = config.Wrap(parts.specials, false, false);
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace flatquant::tokenizer
