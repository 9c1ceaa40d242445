#include "flatquant/data/token_windows.h"

#include <algorithm>
#include <optional>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"
#include "flatquant/data/npy.h"
#include "flatquant/data/text_file.h"
#include "flatquant/data/text_sources.h"

namespace flatquant {
namespace {

using Kind = DataSpec::Kind;

struct KindEntry {
  std::string_view name;
  Kind kind;
};
constexpr KindEntry kKinds[] = {
    {"wikitext2", Kind::kWikitext2},
    {"c4", Kind::kC4},
    {"pile", Kind::kPile},
    {"ptb", Kind::kPtb},
    {"text", Kind::kText},
    {"jsonl", Kind::kJsonl},
    {"ids", Kind::kIds},
};

// What the field evaluates of C4: 256 windows out of the first 1,100 documents.
constexpr int64_t kC4Windows = 256;
constexpr size_t kC4Documents = 1100;

const KindEntry* FindKind(std::string_view name) {
  for (const KindEntry& entry : kKinds) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

// The kind that "kind:path" starts with, or nullptr.
const KindEntry* LeadingKind(std::string_view text) {
  const size_t colon = text.find(':');
  return colon == std::string_view::npos ? nullptr : FindKind(text.substr(0, colon));
}

std::vector<int32_t> DocumentTokens(const std::vector<std::string>& documents,
                                    const Tokenizer& tokenizer) {
  const std::optional<int32_t> eos = tokenizer.eos();
  std::vector<int32_t> ids;
  for (const std::string& document : documents) {
    const std::vector<int32_t> part = tokenizer.Encode(document, /*add_special=*/true);
    ids.insert(ids.end(), part.begin(), part.end());
    if (eos && (part.empty() || part.back() != *eos)) ids.push_back(*eos);
  }
  return ids;
}

// documents > 0: only the first ones of a JSON-lines source that is joined.
std::string JoinedText(const DataSpec& spec, size_t documents) {
  const std::string raw = ReadTextFile(spec.path);
  switch (spec.kind) {
    case Kind::kWikitext2:
      return Wikitext2Text(raw);
    case Kind::kC4:
      return Join(JsonDocuments(raw, spec.path, documents), " ");
    case Kind::kPile:
      return Join(JsonDocuments(raw, spec.path, documents), "\n\n");
    case Kind::kPtb:
      return PtbText(raw);
    default:
      return raw;
  }
}

std::vector<int32_t> Load(const DataSpec& spec, const Tokenizer& tokenizer, size_t documents) {
  std::vector<int32_t> ids;
  if (spec.kind == Kind::kIds) {
    ids = ReadNpyIds(spec.path).ids;
  } else if (spec.kind == Kind::kJsonl) {
    ids = DocumentTokens(JsonDocuments(ReadTextFile(spec.path), spec.path), tokenizer);
  } else {
    const std::string text = JoinedText(spec, documents);
    if (!text.empty()) ids = tokenizer.Encode(text, /*add_special=*/true);
  }
  if (ids.empty()) {
    throw Error("data.empty", spec.path.string(), "holds no text", "check the file");
  }
  return ids;
}

void CheckIds(const std::vector<int32_t>& ids, int64_t vocab_size, const DataSpec& spec) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < vocab_size) continue;
    throw Error("data.id_range", spec.path.string(),
                "token " + std::to_string(i) + " is " + std::to_string(ids[i]) +
                    ", but the model's vocabulary has " + std::to_string(vocab_size) + " entries",
                spec.kind == Kind::kIds ? "the ids must come from the model's own tokenizer"
                                        : "the tokenizer does not belong to the model");
  }
}

// The first `count` rows of a 2-D ids file, which must be `length` long.
TokenWindows Rows(NpyIds rows, const DataSpec& spec, int64_t length, int64_t count) {
  if (rows.cols != length) {
    throw Error("data.row_length", spec.path.string(),
                "has rows of " + std::to_string(rows.cols) + " tokens, but windows of " +
                    std::to_string(length) + " are asked for",
                "set --seqlen to the rows' length");
  }
  if (count > rows.rows || rows.rows == 0) {
    throw Error("data.too_short", spec.path.string(),
                "has " + std::to_string(rows.rows) + " rows, fewer than the " +
                    std::to_string(std::max<int64_t>(count, 1)) + " needed",
                "ask for fewer windows");
  }
  rows.ids.resize(static_cast<size_t>(count * length));
  return {count, length, std::move(rows.ids)};
}

[[noreturn]] void FailTooShort(const DataSpec& spec, size_t tokens, int64_t length) {
  throw Error("data.too_short", spec.path.string(),
              "has " + std::to_string(tokens) + " tokens, fewer than one window of " +
                  std::to_string(length),
              "use a longer text or a smaller --seqlen");
}

}  // namespace

DataSpec DataSpec::Parse(std::string_view text) {
  const KindEntry* entry = LeadingKind(text);
  const std::string_view path =
      entry != nullptr ? text.substr(entry->name.size() + 1) : std::string_view();
  if (path.empty()) {
    std::string names;
    for (const KindEntry& kind : kKinds) names.append(names.empty() ? "" : ", ").append(kind.name);
    throw Error("data.bad_spec", "'" + std::string(text) + "'",
                entry == nullptr ? "does not start with a known kind of data" : "names no file",
                "write KIND:FILE with KIND one of " + names);
  }
  return {entry->kind, std::filesystem::path(path)};
}

std::vector<DataSpec> DataSpec::ParseList(std::string_view text) {
  std::vector<DataSpec> specs;
  for (;;) {
    size_t comma = text.find(',');
    while (comma != std::string_view::npos && LeadingKind(text.substr(comma + 1)) == nullptr) {
      comma = text.find(',', comma + 1);
    }
    specs.push_back(Parse(text.substr(0, comma)));
    if (comma == std::string_view::npos) return specs;
    text.remove_prefix(comma + 1);
  }
}

std::string DataSpec::KindName() const {
  for (const KindEntry& entry : kKinds) {
    if (entry.kind == kind) return std::string(entry.name);
  }
  FLATQUANT_CHECK(false);
  return {};
}

std::vector<int32_t> LoadTokens(const DataSpec& spec, const Tokenizer& tokenizer) {
  return Load(spec, tokenizer, /*documents=*/0);
}

TokenWindows EvaluationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                               int64_t limit, int64_t vocab_size) {
  FLATQUANT_CHECK(length > 0 && limit >= 0);
  TokenWindows windows;
  NpyIds npy;
  if (spec.kind == Kind::kIds) npy = ReadNpyIds(spec.path);
  if (npy.two_dimensional) {
    const int64_t count = limit > 0 ? std::min(limit, npy.rows) : npy.rows;
    windows = Rows(std::move(npy), spec, length, count);
  } else {
    windows.ids = spec.kind == Kind::kIds
                      ? std::move(npy.ids)
                      : Load(spec, tokenizer, spec.kind == Kind::kC4 ? kC4Documents : 0);
    windows.length = length;
    windows.count = static_cast<int64_t>(windows.ids.size()) / length;
    if (windows.count == 0) FailTooShort(spec, windows.ids.size(), length);
    if (spec.kind == Kind::kC4) windows.count = std::min(windows.count, kC4Windows);
    if (limit > 0) windows.count = std::min(windows.count, limit);
    windows.ids.resize(static_cast<size_t>(windows.count * length));
  }
  CheckIds(windows.ids, vocab_size, spec);
  return windows;
}

TokenWindows CalibrationWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t length,
                                int64_t count, uint64_t seed, int64_t vocab_size) {
  FLATQUANT_CHECK(length > 0 && count > 0);
  std::vector<int32_t> tokens;
  if (spec.kind == Kind::kIds) {
    NpyIds npy = ReadNpyIds(spec.path);
    if (npy.two_dimensional) {
      TokenWindows windows = Rows(std::move(npy), spec, length, count);
      CheckIds(windows.ids, vocab_size, spec);
      return windows;
    }
    tokens = std::move(npy.ids);
  } else {
    tokens = LoadTokens(spec, tokenizer);
  }
  if (static_cast<int64_t>(tokens.size()) < length) FailTooShort(spec, tokens.size(), length);
  CheckIds(tokens, vocab_size, spec);

  TokenWindows windows{count, length, {}};
  windows.ids.reserve(static_cast<size_t>(count * length));
  Rng rng(seed);
  const uint64_t starts = tokens.size() - static_cast<uint64_t>(length) + 1;
  for (int64_t i = 0; i < count; ++i) {
    const auto start = tokens.begin() + static_cast<int64_t>(rng.Below(starts));
    windows.ids.insert(windows.ids.end(), start, start + length);
  }
  return windows;
}

std::string TokenWindows::Fingerprint() const {
  // FNV-1a over the dimensions and ids as 32-bit little-endian words.
  uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](uint32_t word) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash = (hash ^ (word >> shift & 0xffu)) * 0x100000001b3u;
    }
  };
  add(static_cast<uint32_t>(count));
  add(static_cast<uint32_t>(length));
  for (int32_t id : ids) add(static_cast<uint32_t>(id));
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "fnv1a64:";
  for (int shift = 60; shift >= 0; shift -= 4) text += kDigits[hash >> shift & 0xfu];
  return text;
}

}  // namespace flatquant
