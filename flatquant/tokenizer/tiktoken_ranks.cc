#include <algorithm>
#include <charconv>

#include "flatquant/base/error.h"
#include "flatquant/tokenizer/byte_level.h"
#include "flatquant/tokenizer/formats.h"
#include "flatquant/tokenizer/pipeline_tokenizer.h"

namespace flatquant::tokenizer {
namespace {

// Building the merge rules takes time quadratic in a token's length. The longest
// published tokens have 128 bytes.
constexpr size_t kMaxTokenBytes = 256;

[[noreturn]] void Fail(const std::string& where, const std::string& what) {
  throw Error("tokenizer.bad_ranks", where, what, "download the tokenizer.model again");
}

int Base64Digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  if (c == '/') return 63;
  return -1;
}

// RFC 4648 with padding. False for anything else.
bool DecodeBase64(std::string_view text, std::string* bytes) {
  bytes->clear();
  if (text.empty() || text.size() % 4 != 0) return false;
  for (size_t at = 0; at < text.size(); at += 4) {
    uint32_t bits = 0;
    int padding = 0;
    for (size_t i = 0; i < 4; ++i) {
      const char c = text[at + i];
      const int digit = Base64Digit(c);
      if (c == '=' && at + 4 == text.size() && i >= 2) {
        ++padding;
      } else if (digit < 0 || padding > 0) {
        return false;
      }
      bits = bits << 6 | static_cast<uint32_t>(digit < 0 ? 0 : digit);
    }
    bytes->push_back(static_cast<char>(bits >> 16));
    if (padding < 2) bytes->push_back(static_cast<char>(bits >> 8));
    if (padding < 1) bytes->push_back(static_cast<char>(bits));
  }
  return true;
}

// One line "base64 rank". False for anything else.
bool ParseLine(std::string_view line, std::string* token, int32_t* rank) {
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || !DecodeBase64(line.substr(0, space), token)) return false;
  const char* end = line.data() + line.size();
  const auto [stop, error] = std::from_chars(line.data() + space + 1, end, *rank);
  return error == std::errc() && stop == end;
}

template <typename Visit>
void ForEachLine(std::string_view text, Visit visit) {
  size_t number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number;
    if (!line.empty()) visit(line, number);
  }
}

// Raw bytes -> rank.
TokenMap ParseRanks(std::string_view text, const std::string& where) {
  TokenMap ranks;
  std::string token;
  ForEachLine(text, [&](std::string_view line, size_t number) {
    const std::string place = "line " + std::to_string(number);
    int32_t rank = 0;
    if (!ParseLine(line, &token, &rank)) Fail(where, place + " is not a base64 token and its rank");
    if (rank < 0 || rank > kMaxTokenId) Fail(where, place + " has a rank out of range");
    if (token.size() > kMaxTokenBytes) Fail(where, place + " holds a token that is too long");
    if (!ranks.emplace(token, rank).second) Fail(where, place + " repeats a token");
  });
  return ranks;
}

// The rank method joins the neighbours whose joint bytes have the lowest rank:
// merge rules for every way to cut a token into two tokens do the same.
std::vector<Merge> RulesFromRanks(const TokenMap& ranks) {
  std::vector<Merge> merges;
  for (const auto& [token, rank] : ranks) {
    const std::string_view bytes = token;
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = ranks.find(bytes.substr(0, cut));
      if (left == ranks.end()) continue;
      const auto right = ranks.find(bytes.substr(cut));
      if (right == ranks.end()) continue;
      merges.push_back({left->second, right->second, static_cast<uint32_t>(rank), rank});
    }
  }
  return merges;
}

// Llama 3's special tokens, in the order of their ids behind the ranks.
std::vector<AddedToken> Llama3SpecialTokens(int32_t first) {
  constexpr int kCount = 256;
  std::vector<std::string> names = {"<|begin_of_text|>", "<|end_of_text|>"};
  int reserved = 0;
  const auto reserve = [&](int n) {
    for (int i = 0; i < n; ++i) {
      names.push_back("<|reserved_special_token_" + std::to_string(reserved++) + "|>");
    }
  };
  reserve(4);
  names.insert(names.end(), {"<|start_header_id|>", "<|end_header_id|>"});
  reserve(1);
  names.push_back("<|eot_id|>");
  reserve(kCount - static_cast<int>(names.size()));
  std::vector<AddedToken> tokens;
  for (const std::string& name : names) {
    AddedToken token;
    token.id = first++;
    token.content = name;
    token.special = true;
    tokens.push_back(token);
  }
  return tokens;
}

// Names in tokenizer_config.json (later models use some reserved ids) win.
std::vector<AddedToken> SpecialTokens(int32_t first, const SpecialTokensConfig& config) {
  std::vector<AddedToken> tokens = config.AddedTokensDecoder();
  for (AddedToken& token : Llama3SpecialTokens(first)) {
    const bool taken = std::any_of(tokens.begin(), tokens.end(), [&](const AddedToken& other) {
      return other.id == token.id || other.content == token.content;
    });
    if (!taken) tokens.push_back(std::move(token));
  }
  return tokens;
}

}  // namespace

bool LooksLikeRanks(std::string_view bytes) {
  std::string token;
  int32_t rank = 0;
  std::string_view line = bytes.substr(0, std::min<size_t>(bytes.find('\n'), 4096));
  if (line.ends_with('\r')) line.remove_suffix(1);
  return ParseLine(line, &token, &rank);
}

std::unique_ptr<Tokenizer> ReadRanks(std::string_view bytes, const std::filesystem::path& file,
                                     const SpecialTokensConfig& config) {
  const std::string where = file.string();
  const TokenMap ranks = ParseRanks(bytes, where);
  BpeSpec spec;
  spec.where = where;
  spec.byte_level = true;
  spec.ignore_merges = true;
  spec.merges = RulesFromRanks(ranks);
  int32_t last = -1;
  for (const auto& [token, rank] : ranks) {
    spec.vocab.emplace(BytesToPrintable(token), rank);
    last = std::max(last, rank);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (!ranks.contains(std::string(1, static_cast<char>(byte)))) {
      Fail(where, "there is no token for the byte " + std::to_string(byte));
    }
  }

  PipelineParts parts;
  parts.pre_tokenizer = PreTokenizer::ByteLevel(kLlama3Pattern);
  parts.model = std::make_unique<BpeModel>(std::move(spec));
  parts.decoder = Decoder::ByteLevel();
  parts.added = AddedTokens(SpecialTokens(last + 1, config), parts.model->vocab(), nullptr, where);
  parts.vocabulary = Vocabulary(parts.model->vocab(), parts.added.tokens());
  PostProcessor begin_of_text;
  begin_of_text.prefix = {last + 1};
  parts.specials = config.Resolve(
      [&](std::string_view spelling) { return parts.added.Find(spelling, parts.model->vocab()); },
      [&](int32_t id) { return parts.vocabulary.Has(id); }, begin_of_text);
  if (!parts.specials.eos) {
    parts.specials.eos = last + 2;
    parts.specials.stops = {last + 2};
  }
  parts.always_find_added = false;
  parts.post_processor = config.Wrap(parts.specials, true, false);
  return std::make_unique<PipelineTokenizer>(std::move(parts));
}

}  // namespace flatquant::tokenizer
