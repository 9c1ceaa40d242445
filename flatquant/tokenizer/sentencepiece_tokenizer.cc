#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/formats.h"
#include "flatquant/tokenizer/pipeline_tokenizer.h"
#include "flatquant/tokenizer/sentencepiece_library.h"
#include "flatquant/tokenizer/sentencepiece_proto.h"

namespace flatquant::tokenizer {
namespace {

constexpr std::string_view kMetaspace = "\xe2\x96\x81";  // U+2581, a space inside pieces

// The library needs about 250 bytes of memory per byte of text, so that long
// texts are encoded in parts of about this size where the result is the same.
constexpr size_t kPartBytes = size_t{1} << 16;

// Whether encoding "a b" always equals encoding "a" and then "b": the space in
// front of b comes back as the prefix of every text, and no piece spans it. (The
// unigram model adds floats from the text's start, so that its ties depend on it.)
bool PartsAtSpaces(const SentencePieceSpec& spec, const SentencePieceModel& model) {
  if (!spec.is_bpe || !spec.add_dummy_prefix || !spec.escape_whitespaces ||
      spec.treat_whitespace_as_suffix) {
    return false;
  }
  bool has_space = false;
  for (int id = 0; id < model.size(); ++id) {
    std::string_view piece = model.piece(id);
    has_space = has_space || piece == kMetaspace;
    while (piece.starts_with(kMetaspace)) piece.remove_prefix(kMetaspace.size());
    if (piece.find(kMetaspace) != std::string_view::npos) return false;
    if (piece.find(' ') != std::string_view::npos) return false;
  }
  return has_space;
}

// The first single space between two printable ASCII characters (which no
// normalization rule touches) at or after `from`, or npos.
size_t NextSingleSpace(std::string_view text, size_t from) {
  const auto graphic = [&](size_t i) { return text[i] > ' ' && text[i] < '\x7f'; };
  for (size_t at = text.find(' ', from); at < text.size(); at = text.find(' ', at + 1)) {
    if (at > 0 && at + 1 < text.size() && graphic(at - 1) && graphic(at + 1)) return at;
  }
  return std::string_view::npos;
}

// libsentencepiece between added tokens. Control symbols (<s>, </s>), which the
// library never finds in text, are recognised here; every stretch between two of
// them is encoded as a text of its own, as Hugging Face's LlamaTokenizer does.
class SentencePieceTokenizer : public Tokenizer {
 public:
  struct Parts {
    explicit Parts(SentencePieceModel loaded) : model(std::move(loaded)) {}

    SentencePieceModel model;
    bool parts_at_spaces = false;
    AddedTokens added;
    Decoder decoder;
    PostProcessor post_processor;
    Vocabulary vocabulary;
    SpecialIds specials;
  };

  explicit SentencePieceTokenizer(Parts parts) : parts_(std::move(parts)) {}

  std::vector<int32_t> Encode(std::string_view text, bool add_special) const override {
    std::string valid;
    text = ValidText(text, &valid);
    std::vector<int32_t> ids;
    if (add_special) ids = parts_.post_processor.prefix;
    for (const TextPart& raw : parts_.added.SplitRaw(text)) {
      if (raw.id >= 0) {
        ids.push_back(raw.id);
        continue;
      }
      for (const TextPart& part : parts_.added.SplitNormalized(raw.text)) {
        if (part.id >= 0) {
          ids.push_back(part.id);
        } else {
          EncodePlain(part.text, &ids);
        }
      }
    }
    if (add_special) {
      const std::vector<int32_t>& suffix = parts_.post_processor.suffix;
      ids.insert(ids.end(), suffix.begin(), suffix.end());
    }
    return ids;
  }

  std::string Decode(std::span<const int32_t> ids, bool skip_special) const override {
    return parts_.decoder.Apply(parts_.vocabulary.Spell(ids, skip_special));
  }

  int32_t vocab_size() const override { return parts_.vocabulary.size(); }
  std::optional<int32_t> bos() const override { return parts_.specials.bos; }
  std::optional<int32_t> eos() const override { return parts_.specials.eos; }
  std::vector<int32_t> stop_tokens() const override { return parts_.specials.stops; }

 private:
  void EncodePlain(std::string_view text, std::vector<int32_t>* ids) const {
    while (parts_.parts_at_spaces && text.size() > kPartBytes) {
      const size_t space = NextSingleSpace(text, kPartBytes);
      if (space == std::string_view::npos) break;
      EncodePart(text.substr(0, space), ids);
      text.remove_prefix(space + 1);
    }
    EncodePart(text, ids);
  }

  void EncodePart(std::string_view text, std::vector<int32_t>* ids) const {
    parts_.model.Encode(text, ids);
  }

  Parts parts_;
};

}  // namespace

std::unique_ptr<Tokenizer> ReadSentencePiece(std::string_view bytes,
                                             const std::filesystem::path& file,
                                             const SpecialTokensConfig& config) {
  const std::string where = file.string();
  const SentencePieceSpec spec = InspectSentencePiece(bytes, where);
  SentencePieceTokenizer::Parts parts(SentencePieceModel::Load(bytes, where));
  const SentencePieceModel& model = parts.model;
  parts.parts_at_spaces = PartsAtSpaces(spec, model);
  TokenMap vocab;
  std::vector<AddedToken> added = config.AddedTokensDecoder();
  for (int id = 0; id < model.size(); ++id) {
    const std::string piece(model.piece(id));
    vocab.emplace(piece, id);
    const bool listed = std::any_of(added.begin(), added.end(),
                                    [&](const AddedToken& token) { return token.id == id; });
    if (!listed && (model.IsControl(id) || model.IsUnknown(id))) {
      AddedToken token;
      token.id = id;
      token.content = piece;
      token.special = true;
      added.push_back(std::move(token));
    }
  }
  parts.added = AddedTokens(std::move(added), vocab, nullptr, where);
  parts.decoder =
      Decoder::SentencePiece(!spec.add_dummy_prefix            ? Decoder::Padding::kNone
                             : spec.treat_whitespace_as_suffix ? Decoder::Padding::kBehind
                                                               : Decoder::Padding::kFront);
  parts.vocabulary = Vocabulary(vocab, parts.added.tokens());
  PostProcessor begin;
  if (model.bos() >= 0) begin.prefix = {model.bos()};
  const auto find = [&](std::string_view spelling) { return parts.added.Find(spelling, vocab); };
  const auto known = [&](int32_t id) { return parts.vocabulary.Has(id); };
  parts.specials = config.Resolve(find, known, begin);
  if (!parts.specials.eos && model.eos() >= 0) {
    parts.specials.eos = model.eos();
    parts.specials.stops.insert(parts.specials.stops.begin(), model.eos());
  }
  parts.post_processor = config.Wrap(parts.specials, true, false);
  return std::make_unique<SentencePieceTokenizer>(std::move(parts));
}

}  // namespace flatquant::tokenizer
