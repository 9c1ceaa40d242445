#include "flatquant/tokenizer/vocab_json.h"

#include "flatquant/base/error.h"

namespace flatquant::tokenizer {

TokenMap ParseVocab(const JsonView& json) {
  const nlohmann::json& object = json.Object();
  TokenMap vocab;
  vocab.reserve(object.size());
  for (auto entry = object.begin(); entry != object.end(); ++entry) {
    if (!entry->is_number_integer()) json[entry.key()].Fail("should be an integer");
    const int64_t id = json[entry.key()].Integer();
    if (id < 0 || id > kMaxTokenId) {
      throw Error("tokenizer.bad_vocab", json[entry.key()].where(),
                  "id " + std::to_string(id) + " is outside 0.." + std::to_string(kMaxTokenId),
                  "download the tokenizer's files again");
    }
    vocab.emplace(entry.key(), static_cast<int32_t>(id));
  }
  return vocab;
}

void MergeParser::Fail(const std::string& what) const {
  throw Error("tokenizer.bad_merge", where_, "merge " + std::to_string(merges_.size()) + " " + what,
              "download the tokenizer's files again");
}

int32_t MergeParser::Id(std::string_view token) const {
  const auto found = vocab_.find(token);
  if (found == vocab_.end()) {
    Fail("names \"" + std::string(token) + "\", which is not in the vocabulary");
  }
  return found->second;
}

void MergeParser::Add(std::string_view left, std::string_view right) {
  if (left.empty() || right.empty()) Fail("has an empty part");
  const auto rank = static_cast<uint32_t>(merges_.size());
  merges_.push_back({Id(left), Id(right), rank, Id(std::string(left).append(right))});
}

void MergeParser::AddLine(std::string_view line) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
    Fail("\"" + std::string(line) + "\" is not two tokens with a space between");
  }
  Add(line.substr(0, space), line.substr(space + 1));
}

}  // namespace flatquant::tokenizer
