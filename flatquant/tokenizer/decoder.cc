#include "flatquant/tokenizer/decoder.h"

#include <algorithm>
#include <charconv>

#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/text_pattern.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

constexpr std::string_view kMetaspace = "\xe2\x96\x81";    // U+2581
constexpr std::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

class ReplaceStep : public DecoderStep {
 public:
  ReplaceStep(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  void Apply(std::vector<std::string>* tokens) const override {
    for (std::string& token : *tokens) token = pattern_.Replace(token, content_);
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

// The byte that a token <0xNN> names, or -1.
int NamedByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  int byte = 0;
  const auto [end, error] = std::from_chars(token.data() + 3, token.data() + 5, byte, 16);
  return error == std::errc() && end == token.data() + 5 && byte >= 0 ? byte : -1;
}

// Runs of byte tokens become the text that they spell, or as many U+FFFD as
// there are bytes when a run is not valid UTF-8.
class ByteFallbackStep : public DecoderStep {
 public:
  void Apply(std::vector<std::string>* tokens) const override {
    std::vector<std::string> out;
    out.reserve(tokens->size());
    std::string run;
    const auto flush = [&] {
      if (run.empty()) return;
      if (ValidUtf8Prefix(run) == run.size()) {
        out.push_back(run);
      } else {
        out.insert(out.end(), run.size(), std::string(kReplacement));
      }
      run.clear();
    };
    for (std::string& token : *tokens) {
      const int byte = NamedByte(token);
      if (byte >= 0) {
        run.push_back(static_cast<char>(byte));
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    *tokens = std::move(out);
  }
};

class FuseStep : public DecoderStep {
 public:
  void Apply(std::vector<std::string>* tokens) const override {
    std::string text;
    for (const std::string& token : *tokens) text += token;
    tokens->clear();
    tokens->push_back(std::move(text));
  }
};

// Removes up to `start` copies of a character in front of every token and up to
// `stop` behind.
class StripStep : public DecoderStep {
 public:
  StripStep(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}
  void Apply(std::vector<std::string>* tokens) const override {
    for (std::string& token : *tokens) {
      std::string_view rest = token;
      for (size_t i = 0; i < start_ && rest.starts_with(content_); ++i) {
        rest.remove_prefix(content_.size());
      }
      for (size_t i = 0; i < stop_ && rest.ends_with(content_); ++i) {
        rest.remove_suffix(content_.size());
      }
      if (rest.size() != token.size()) token = std::string(rest);
    }
  }

 private:
  std::string content_;
  size_t start_;
  size_t stop_;
};

class ByteLevelStep : public DecoderStep {
 public:
  void Apply(std::vector<std::string>* tokens) const override {
    std::string text;
    std::string bytes;
    for (const std::string& token : *tokens) {
      text += PrintableToBytes(token, &bytes) ? bytes : token;
    }
    tokens->clear();
    tokens->push_back(ReplaceInvalidUtf8(text));
  }
};

// The replacement character is a space; in the first token it is dropped where
// encoding put it there.
class MetaspaceStep : public DecoderStep {
 public:
  MetaspaceStep(std::string replacement, bool prepended)
      : space_(TextPattern::Literal(std::move(replacement))), prepended_(prepended) {}
  void Apply(std::vector<std::string>* tokens) const override {
    bool first = true;
    for (std::string& token : *tokens) {
      token = space_.Replace(token, first && prepended_ ? "" : " ");
      first = false;
    }
  }

 private:
  TextPattern space_;
  bool prepended_;
};

// A suffix that marks word ends becomes a space, except at the very end.
class SuffixStep : public DecoderStep {
 public:
  explicit SuffixStep(std::string suffix) : suffix_(TextPattern::Literal(std::move(suffix))) {}
  void Apply(std::vector<std::string>* tokens) const override {
    for (std::string& token : *tokens) {
      token = suffix_.Replace(token, &token == &tokens->back() ? "" : " ");
    }
  }

 private:
  TextPattern suffix_;
};

using Steps = std::vector<std::unique_ptr<DecoderStep>>;

void AddSteps(const JsonView& json, Steps* steps) {
  const std::string type = json["type"].String();
  if (type == "Sequence") {
    for (const JsonView& step : json["decoders"].Items()) AddSteps(step, steps);
  } else if (type == "Replace") {
    steps->push_back(std::make_unique<ReplaceStep>(TextPattern::Parse(json["pattern"]),
                                                   json["content"].String()));
  } else if (type == "ByteFallback") {
    steps->push_back(std::make_unique<ByteFallbackStep>());
  } else if (type == "Fuse") {
    steps->push_back(std::make_unique<FuseStep>());
  } else if (type == "Strip") {
    const std::string content = json["content"].String();
    if (content.empty() || DecodeUtf8(content, 0).length != content.size()) {
      json["content"].Fail("should be one character");
    }
    const auto count = [&](const char* key) {
      const int64_t n = json[key].missing() ? 0 : json[key].Integer();
      if (n < 0) json[key].Fail("should not be negative");
      return static_cast<size_t>(n);
    };
    steps->push_back(std::make_unique<StripStep>(content, count("start"), count("stop")));
  } else if (type == "ByteLevel") {
    steps->push_back(std::make_unique<ByteLevelStep>());
  } else if (type == "Metaspace") {
    const bool prepended = json["prepend_scheme"].missing()
                               ? json["add_prefix_space"].BoolOr(true)
                               : json["prepend_scheme"].String() != "never";
    steps->push_back(
        std::make_unique<MetaspaceStep>(json["replacement"].StringOr(kMetaspace), prepended));
  } else if (type == "BPEDecoder") {
    steps->push_back(std::make_unique<SuffixStep>(json["suffix"].StringOr("</w>")));
  } else {
    json.Unsupported("the decoder \"" + type + "\"");
  }
}

}  // namespace

Decoder Decoder::ByteLevel() {
  Decoder decoder;
  decoder.steps_.push_back(std::make_unique<ByteLevelStep>());
  return decoder;
}

Decoder Decoder::SentencePiece(Padding padding) {
  Decoder decoder;
  decoder.steps_.push_back(
      std::make_unique<ReplaceStep>(TextPattern::Literal(std::string(kMetaspace)), " "));
  decoder.steps_.push_back(std::make_unique<ByteFallbackStep>());
  decoder.steps_.push_back(std::make_unique<FuseStep>());
  if (padding != Padding::kNone) {
    const bool front = padding == Padding::kFront;
    decoder.steps_.push_back(std::make_unique<StripStep>(" ", front ? 1 : 0, front ? 0 : 1));
  }
  return decoder;
}

Decoder Decoder::Parse(const JsonView& json) {
  Decoder decoder;
  if (json.missing()) {
    decoder.join_with_spaces_ = true;
  } else {
    AddSteps(json, &decoder.steps_);
  }
  return decoder;
}

std::string Decoder::Apply(std::vector<std::string> tokens) const {
  for (const auto& step : steps_) step->Apply(&tokens);
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && join_with_spaces_) text += ' ';
    text += tokens[i];
  }
  return text;
}

}  // namespace flatquant::tokenizer
