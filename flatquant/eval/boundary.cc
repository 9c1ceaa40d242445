#include "flatquant/eval/boundary.h"

#include <algorithm>
#include <optional>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/data/text_sources.h"

namespace flatquant {
namespace {

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text, BosRule bos,
                            std::string_view where) {
  std::vector<int32_t> ids = tokenizer.Encode(text, /*add_special=*/bos != BosRule::kNever);
  if (bos == BosRule::kAlways) {
    const std::optional<int32_t> id = tokenizer.bos();
    if (!id) {
      throw Error("eval.no_bos", where, "the tokenizer has no BOS token", "use --bos auto");
    }
    if (ids.empty() || ids[0] != *id) ids.insert(ids.begin(), *id);
  }
  return ids;
}

}  // namespace

LikelihoodRequest EncodePair(const Tokenizer& tokenizer, std::string_view context,
                             std::string_view continuation, BosRule bos, std::string_view where) {
  const std::string_view stripped = StripTrailingWhitespace(context);
  const std::string moved =
      std::string(context.substr(stripped.size())) + std::string(continuation);
  LikelihoodRequest request;
  if (stripped.empty()) {
    const std::optional<int32_t> first = tokenizer.bos() ? tokenizer.bos() : tokenizer.eos();
    if (!first) {
      throw Error("eval.no_bos", where, "an empty context needs a BOS or EOS token",
                  "the tokenizer has neither");
    }
    request.context = {*first};
    request.continuation = tokenizer.Encode(moved, /*add_special=*/false);
  } else {
    request.context = Encode(tokenizer, stripped, bos, where);
    const std::vector<int32_t> whole = Encode(tokenizer, std::string(stripped) + moved, bos, where);
    const size_t cut = std::min(request.context.size(), whole.size());
    request.continuation.assign(whole.begin() + static_cast<std::ptrdiff_t>(cut), whole.end());
  }
  if (request.context.empty() || request.continuation.empty()) {
    throw Error("eval.empty_continuation", where, "has an answer without a token of its own",
                "the tokenizer joins it with the text before; leave the item out");
  }
  return request;
}

}  // namespace flatquant
