#include "flatquant/eval/text_windows.h"

#include <algorithm>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/data/npy.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant {

int64_t TextWindows::scored_tokens() const {
  int64_t total = 0;
  for (const Window& window : windows) total += window.scored;
  return total;
}

uint64_t TextWindows::Fingerprint() const {
  flatquant::Fingerprint fingerprint;
  fingerprint.Add(std::as_bytes(std::span(ids)));
  for (const Window& window : windows) {
    for (int64_t number : {window.begin, window.length, window.scored}) {
      fingerprint.Add(static_cast<uint64_t>(number));
    }
  }
  return fingerprint.value();
}

std::vector<TextWindows::Window> StridedWindows(int64_t tokens, int64_t seqlen, int64_t stride) {
  FLATQUANT_CHECK(tokens >= 2 && stride > 0 && stride < seqlen);
  std::vector<TextWindows::Window> windows;
  int64_t scored_to = 1;  // nothing comes before the first token
  for (int64_t begin = 0; scored_to < tokens; begin += stride) {
    const int64_t end = std::min(begin + seqlen, tokens);
    windows.push_back({begin, end - begin, end - scored_to});
    scored_to = end;
  }
  return windows;
}

TextWindows ReadTextWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t seqlen,
                            int64_t stride, int64_t limit, int64_t vocab) {
  FLATQUANT_CHECK(seqlen >= 2 && stride >= 0);
  if (stride > seqlen) {
    throw Error("eval.stride", "--stride " + std::to_string(stride),
                "leaves out tokens between windows of " + std::to_string(seqlen),
                "use at most --seqlen");
  }
  const bool overlapping = stride != 0 && stride != seqlen;
  if (overlapping && spec.kind == DataSpec::Kind::kIds && ReadNpyIds(spec.path).two_dimensional) {
    throw Error("eval.stride", spec.path.string(), "has rows, which windows must not straddle",
                "leave --stride out");
  }
  TokenWindows source = EvaluationWindows(spec, tokenizer, seqlen, overlapping ? 0 : limit, vocab);
  TextWindows text{spec.KindName(), std::move(source.ids), {}, seqlen};
  if (overlapping) {
    text.windows = StridedWindows(static_cast<int64_t>(text.ids.size()), seqlen, stride);
    if (limit > 0 && limit < static_cast<int64_t>(text.windows.size())) {
      text.windows.resize(static_cast<size_t>(limit));
    }
  } else {
    for (int64_t i = 0; i < source.count; ++i) {
      text.windows.push_back({i * seqlen, seqlen, seqlen - 1});
    }
  }
  return text;
}

}  // namespace flatquant
