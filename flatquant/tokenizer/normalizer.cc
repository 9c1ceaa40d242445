#include "flatquant/tokenizer/normalizer.h"

#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/text_pattern.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant::tokenizer {
namespace {

class SequenceNormalizer : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps)
      : steps_(std::move(steps)) {}
  std::string Apply(std::string_view text) const override {
    std::string out(text);
    for (const auto& step : steps_) out = step->Apply(out);
    return out;
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

class PrependNormalizer : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  std::string Apply(std::string_view text) const override {
    return text.empty() ? std::string() : prefix_ + std::string(text);
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer : public Normalizer {
 public:
  ReplaceNormalizer(TextPattern pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}
  std::string Apply(std::string_view text) const override {
    return pattern_.Replace(text, content_);
  }

 private:
  TextPattern pattern_;
  std::string content_;
};

class UnicodeNormalizer : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  std::string Apply(std::string_view text) const override { return Normalize(text, form_); }

 private:
  NormalForm form_;
};

class StripNormalizer : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}
  std::string Apply(std::string_view text) const override {
    size_t begin = text.size();
    size_t end = 0;
    for (size_t at = 0; at < text.size();) {
      const Utf8Char c = DecodeUtf8(text, at);
      if (!IsSpace(c.code)) {
        begin = std::min(begin, at);
        end = at + c.length;
      }
      at += c.length;
    }
    if (begin == text.size()) return left_ || right_ ? std::string() : std::string(text);
    if (!left_) begin = 0;
    if (!right_) end = text.size();
    return std::string(text.substr(begin, end - begin));
  }

 private:
  bool left_;
  bool right_;
};

// A step without parameters.
class FunctionNormalizer : public Normalizer {
 public:
  explicit FunctionNormalizer(std::string (*function)(std::string_view)) : function_(function) {}
  std::string Apply(std::string_view text) const override { return function_(text); }

 private:
  std::string (*function_)(std::string_view);
};

}  // namespace

std::unique_ptr<Normalizer> MakeNfcNormalizer() {
  return std::make_unique<UnicodeNormalizer>(NormalForm::kNfc);
}

std::unique_ptr<Normalizer> ParseNormalizer(const JsonView& json) {
  if (json.missing()) return nullptr;
  const std::string type = json["type"].String();
  if (type == "Sequence") {
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const JsonView& step : json["normalizers"].Items()) {
      if (step.missing()) step.Fail("should be an object");
      steps.push_back(ParseNormalizer(step));
    }
    return std::make_unique<SequenceNormalizer>(std::move(steps));
  }
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(json["prepend"].String());
  if (type == "Replace") {
    return std::make_unique<ReplaceNormalizer>(TextPattern::Parse(json["pattern"]),
                                               json["content"].String());
  }
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkd);
  if (type == "Strip") {
    return std::make_unique<StripNormalizer>(json["strip_left"].BoolOr(true),
                                             json["strip_right"].BoolOr(true));
  }
  if (type == "Lowercase") return std::make_unique<FunctionNormalizer>(&Lowercase);
  if (type == "StripAccents") return std::make_unique<FunctionNormalizer>(&StripAccents);
  if (type == "ByteLevel") return std::make_unique<FunctionNormalizer>(&BytesToPrintable);
  json.Unsupported("the normalizer \"" + type + "\"");
}

}  // namespace flatquant::tokenizer
