#include "flatquant/tokenizer/pre_tokenizer.h"

#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {

const std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

namespace {

// Rewrites every piece of *text through rewrite(piece, first, &out), which
// appends the new piece to out.
template <typename Rewrite>
void RewritePieces(PreTokenized* text, Rewrite rewrite) {
  std::string out;
  out.reserve(text->text.size() + text->pieces.size());
  bool first = true;
  for (Span& piece : text->pieces) {
    const size_t begin = out.size();
    rewrite(text->text.substr(piece.begin, piece.end - piece.begin), first, &out);
    piece = {begin, out.size()};
    first = false;
  }
  text->storage = std::move(out);
  text->text = text->storage;
}

class SplitStep : public PreTokenizerStep {
 public:
  SplitStep(TextPattern pattern, SplitBehavior behavior, bool invert = false)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void Apply(PreTokenized* text) const override {
    std::vector<Span> pieces;
    if (text->pieces.size() == 1) pieces.reserve(text->text.size() / 5);
    for (const Span& piece : text->pieces) {
      Split(text->text, piece, pattern_, behavior_, invert_, &pieces);
    }
    text->pieces = std::move(pieces);
  }

 private:
  TextPattern pattern_;
  SplitBehavior behavior_;
  bool invert_;
};

// Puts a space in front of every piece that does not begin with one.
class PrefixSpaceStep : public PreTokenizerStep {
 public:
  void Apply(PreTokenized* text) const override {
    RewritePieces(text, [](std::string_view piece, bool, std::string* out) {
      if (!piece.starts_with(' ')) out->push_back(' ');
      out->append(piece);
    });
  }
};

// Spells bytes in printable characters, for the steps that follow.
class PrintableStep : public PreTokenizerStep {
 public:
  void Apply(PreTokenized* text) const override {
    RewritePieces(text, [](std::string_view piece, bool, std::string* out) {
      out->append(BytesToPrintable(piece));
    });
  }
};

enum class Prepend { kAlways, kFirst, kNever };

// Spaces become a visible character (usually U+2581), one is put in front.
class MetaspaceStep : public PreTokenizerStep {
 public:
  MetaspaceStep(std::string replacement, Prepend prepend)
      : replacement_(std::move(replacement)), prepend_(prepend) {}

  void Apply(PreTokenized* text) const override {
    RewritePieces(text, [&](std::string_view piece, bool first, std::string* out) {
      const bool wanted =
          prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && first && text->at_start);
      if (wanted && !piece.starts_with(' ') && !piece.starts_with(replacement_)) {
        out->append(replacement_);
      }
      for (const char c : piece) {
        if (c == ' ') {
          out->append(replacement_);
        } else {
          out->push_back(c);
        }
      }
    });
  }

 private:
  std::string replacement_;
  Prepend prepend_;
};

using Steps = std::vector<std::unique_ptr<PreTokenizerStep>>;

void AddMetaspace(const JsonView& json, Steps* steps) {
  const std::string replacement = json["replacement"].StringOr("\xe2\x96\x81");
  const std::string scheme =
      json["prepend_scheme"].StringOr(json["add_prefix_space"].BoolOr(true) ? "always" : "never");
  Prepend prepend = Prepend::kNever;
  if (scheme == "always") {
    prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    prepend = Prepend::kFirst;
  } else if (scheme != "never") {
    json["prepend_scheme"].Unsupported("unknown scheme \"" + scheme + "\"");
  }
  steps->push_back(std::make_unique<MetaspaceStep>(replacement, prepend));
  if (json["split"].BoolOr(true)) {
    steps->push_back(std::make_unique<SplitStep>(TextPattern::Literal(replacement),
                                                 SplitBehavior::kMergedWithNext));
  }
}

// Appends the steps of one pre-tokenizer; *byte_level tells whether the last of
// them is ByteLevel, whose respelling is then still to be done.
void AddSteps(const JsonView& json, Steps* steps, bool* byte_level) {
  const std::string type = json["type"].String();
  if (type == "Sequence") {
    for (const JsonView& step : json["pretokenizers"].Items()) AddSteps(step, steps, byte_level);
    return;
  }
  if (*byte_level) steps->push_back(std::make_unique<PrintableStep>());
  *byte_level = false;
  if (type == "ByteLevel") {
    if (json["add_prefix_space"].BoolOr(true)) {
      steps->push_back(std::make_unique<PrefixSpaceStep>());
    }
    if (json["use_regex"].BoolOr(true)) {
      steps->push_back(std::make_unique<SplitStep>(
          TextPattern::Expression(kGpt2Pattern, json.where()), SplitBehavior::kIsolated));
    }
    *byte_level = true;
  } else if (type == "Split") {
    steps->push_back(std::make_unique<SplitStep>(TextPattern::Parse(json["pattern"]),
                                                 ParseSplitBehavior(json["behavior"]),
                                                 json["invert"].BoolOr(false)));
  } else if (type == "Digits") {
    steps->push_back(std::make_unique<SplitStep>(TextPattern::Characters(&IsNumeric),
                                                 json["individual_digits"].BoolOr(false)
                                                     ? SplitBehavior::kIsolated
                                                     : SplitBehavior::kContiguous));
  } else if (type == "Metaspace") {
    AddMetaspace(json, steps);
  } else if (type == "Whitespace") {
    steps->push_back(
        std::make_unique<SplitStep>(TextPattern::Expression(R"(\w+|[^\w\s]+)", json.where()),
                                    SplitBehavior::kRemoved, /*invert=*/true));
  } else if (type == "WhitespaceSplit") {
    steps->push_back(
        std::make_unique<SplitStep>(TextPattern::Characters(&IsSpace), SplitBehavior::kRemoved));
  } else if (type == "Punctuation") {
    const JsonView behavior = json["behavior"];
    steps->push_back(std::make_unique<SplitStep>(
        TextPattern::Expression(R"([\p{P}!-/:-@\[-`{-~])", json.where()),
        behavior.missing() ? SplitBehavior::kIsolated : ParseSplitBehavior(behavior)));
  } else {
    json.Unsupported("the pre-tokenizer \"" + type + "\"");
  }
}

}  // namespace

PreTokenizer PreTokenizer::ByteLevel(std::string_view pattern) {
  PreTokenizer pre_tokenizer;
  pre_tokenizer.steps_.push_back(std::make_unique<SplitStep>(
      TextPattern::Expression(pattern, "pre-tokenizer pattern"), SplitBehavior::kIsolated));
  pre_tokenizer.byte_level_ = true;
  return pre_tokenizer;
}

PreTokenizer PreTokenizer::Parse(const JsonView& json) {
  PreTokenizer pre_tokenizer;
  if (!json.missing()) AddSteps(json, &pre_tokenizer.steps_, &pre_tokenizer.byte_level_);
  return pre_tokenizer;
}

}  // namespace flatquant::tokenizer
