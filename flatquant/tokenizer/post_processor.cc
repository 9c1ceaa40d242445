#include "flatquant/tokenizer/post_processor.h"

namespace flatquant::tokenizer {
namespace {

int32_t TokenId(const JsonView& json) {
  const int64_t id = json.Integer();
  if (id < 0 || id > kMaxTokenId) json.Fail("is no token id");
  return static_cast<int32_t>(id);
}

// ["token", id]
int32_t PairId(const JsonView& json) {
  const std::vector<JsonView> items = json.Items();
  if (items.size() != 2) json.Fail("should be a token and its id");
  return TokenId(items[1]);
}

}  // namespace

void PostProcessor::Add(const JsonView& json) {
  if (json.missing()) return;
  const std::string type = json["type"].String();
  if (type == "Sequence") {
    for (const JsonView& step : json["processors"].Items()) Add(step);
  } else if (type == "TemplateProcessing") {
    AddTemplate(json);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    prefix.insert(prefix.begin(), PairId(json["cls"]));
    suffix.push_back(PairId(json["sep"]));
  } else if (type != "ByteLevel") {
    json.Unsupported("the post-processor \"" + type + "\"");
  }
}

void PostProcessor::AddTemplate(const JsonView& json) {
  const JsonView special_tokens = json["special_tokens"];
  std::vector<int32_t> before;
  std::vector<int32_t> after;
  bool seen_text = false;
  for (const JsonView& item : json["single"].Items()) {
    const JsonView sequence = item["Sequence"];
    if (!sequence.missing()) {
      if (sequence["id"].String() != "A" || seen_text) {
        item.Unsupported("a template that does not hold its text exactly once");
      }
      seen_text = true;
      continue;
    }
    const std::string name = item["SpecialToken"]["id"].String();
    const JsonView token = special_tokens[name];
    if (token.missing()) item.Fail("names \"" + name + "\", which special_tokens lacks");
    for (const JsonView& id : token["ids"].Items()) {
      (seen_text ? after : before).push_back(TokenId(id));
    }
  }
  if (!seen_text) json["single"].Unsupported("a template that does not hold its text exactly once");
  prefix.insert(prefix.begin(), before.begin(), before.end());
  suffix.insert(suffix.end(), after.begin(), after.end());
}

}  // namespace flatquant::tokenizer
