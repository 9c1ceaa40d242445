#include "flatquant/eval/kl_base_file.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/model/fingerprint.h"
#include "flatquant/runtime/token_scores.h"

namespace flatquant {
namespace {

static_assert(std::endian::native == std::endian::little, "the file's order is the machine's");

constexpr char kMagic[8] = {'F', 'Q', 'K', 'L', 'B', 'A', 'S', 'E'};
constexpr uint32_t kVersion = 1;
// Probabilities below e^-32 = 1.3e-14 of the best token's count for nothing, even
// a million of them.
constexpr float kSpan = 32;
constexpr float kLevels = 65535;
// More than any vocabulary and any name: products of checked numbers stay small.
constexpr uint64_t kMaxVocab = uint64_t{1} << 28;
constexpr uint32_t kMaxName = 4096;

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t name_bytes;
  uint64_t vocab;
  uint64_t ids;
  uint64_t windows;
  uint64_t seqlen;
};
static_assert(sizeof(Header) == 48);

size_t RowBytes(uint64_t vocab) {
  return sizeof(float) + static_cast<size_t>(vocab) * sizeof(uint16_t);
}

uint64_t FingerprintOf(std::span<const std::byte> bytes) {
  Fingerprint fingerprint;
  fingerprint.Add(bytes);
  return fingerprint.value();
}

void EncodeRow(std::span<const float> logits, std::byte* out) {
  const LogitSummary summary = SummarizeLogits(logits);
  const size_t top_index = static_cast<size_t>(summary.top);
  const float top = logits[top_index];
  const float lowest = *std::min_element(logits.begin(), logits.end());
  const float step = std::min(top - lowest, kSpan) / kLevels;
  std::memcpy(out, &step, sizeof(step));
  out += sizeof(step);
  for (size_t i = 0; i < logits.size(); ++i) {
    const float level = step > 0 ? std::round((top - logits[i]) / step) : 0;
    const uint16_t q = i == top_index ? 0 : static_cast<uint16_t>(std::clamp(level, 1.0f, kLevels));
    std::memcpy(out + i * sizeof(q), &q, sizeof(q));
  }
}

}  // namespace

std::vector<float> WriteKlBase(const std::filesystem::path& path, const TextWindows& text,
                               LogitRows& rows, ThreadPool& pool) {
  const size_t vocab = static_cast<size_t>(rows.vocab());
  const size_t row_bytes = RowBytes(vocab);
  std::string head(sizeof(Header), '\0');
  const std::string name = text.name.substr(0, kMaxName);
  Header header{{},
                kVersion,
                static_cast<uint32_t>(name.size()),
                vocab,
                text.ids.size(),
                text.windows.size(),
                static_cast<uint64_t>(text.seqlen)};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  std::memcpy(head.data(), &header, sizeof(header));
  head += name;
  for (const TextWindows::Window& window : text.windows) {
    for (int64_t number : {window.begin, window.length, window.scored}) {
      head.append(reinterpret_cast<const char*>(&number), sizeof(number));
    }
  }
  head.append(reinterpret_cast<const char*>(text.ids.data()), text.ids.size() * sizeof(int32_t));
  const uint64_t head_fingerprint = FingerprintOf(std::as_bytes(std::span(head)));
  AtomicFile file(path);
  file.Write(head);
  file.Write(&head_fingerprint, sizeof(head_fingerprint));

  Progress progress("saving base " + text.name, text.windows.size());
  std::vector<float> nll;
  double sum = 0;
  std::vector<std::byte> bytes;
  for (size_t w = 0; w < text.windows.size(); ++w) {
    const TextWindows::Window& window = text.windows[w];
    const size_t scored = static_cast<size_t>(window.scored);
    const std::span<const int32_t> targets = text.tokens(window).last(scored);
    bytes.resize(scored * row_bytes);
    rows.Begin(w);
    for (size_t begin = 0; begin < scored;) {
      const size_t count = std::min(RowsAtATime(rows.vocab()), scored - begin);
      const std::span<const float> logits = rows.Next(count);
      std::vector<float> losses(count);
      pool.ParallelFor(count, 1, [&](size_t from, size_t to) {
        for (size_t i = from; i < to; ++i) {
          const std::span<const float> row = logits.subspan(i * vocab, vocab);
          losses[i] = static_cast<float>(SummarizeLogits(row).log_sum -
                                         row[static_cast<size_t>(targets[begin + i])]);
          if (std::isfinite(losses[i])) EncodeRow(row, bytes.data() + (begin + i) * row_bytes);
        }
      });
      for (float loss : losses) sum += loss;
      nll.insert(nll.end(), losses.begin(), losses.end());
      if (!std::isfinite(sum)) {
        throw Error("eval.not_finite", text.name + " window " + std::to_string(w),
                    "the model's output is not finite",
                    "its weights may be damaged or overflow; try --precision f32");
      }
      begin += count;
    }
    const uint64_t fingerprint = FingerprintOf(bytes);
    file.Write(bytes.data(), bytes.size());
    file.Write(&fingerprint, sizeof(fingerprint));
    char note[48];
    std::snprintf(note, sizeof(note), "perplexity %.3f",
                  std::exp(sum / static_cast<double>(nll.size())));
    progress.Advance(1, note);
  }
  file.Commit();
  return nll;
}

KlBaseFile::KlBaseFile(const std::filesystem::path& path) : file_(MappedFile::Open(path)) {
  const std::span<const std::byte> bytes = file_.bytes();
  const auto require = [&](bool condition, const char* what) {
    if (condition) return;
    throw Error("eval.bad_kl_base", path.string(), what, "write it again with --save-base");
  };
  Header header;
  require(bytes.size() >= sizeof(header) && std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) == 0,
          "is no saved base");
  std::memcpy(&header, bytes.data(), sizeof(header));
  require(header.version == kVersion, "was written by another version");
  require(header.vocab >= 1 && header.vocab <= kMaxVocab, "has an impossible vocabulary");
  require(header.name_bytes <= kMaxName, "has an impossible name");
  // Every count is bounded by the file's size before it is used.
  require(header.windows >= 1 && header.windows <= bytes.size() / (3 * sizeof(int64_t)),
          "is shorter than its windows");
  require(header.ids >= 2 && header.ids <= bytes.size() / sizeof(int32_t),
          "is shorter than its ids");
  require(header.seqlen >= 2 && header.seqlen <= header.ids, "has impossible windows");
  const uint64_t windows_at = sizeof(header) + header.name_bytes;
  const uint64_t ids_at = windows_at + header.windows * 3 * sizeof(int64_t);
  const uint64_t head_bytes = ids_at + header.ids * sizeof(int32_t);
  require(head_bytes + sizeof(uint64_t) <= bytes.size(), "ends too early");
  uint64_t fingerprint;
  std::memcpy(&fingerprint, bytes.data() + head_bytes, sizeof(fingerprint));
  require(fingerprint == FingerprintOf(bytes.first(head_bytes)), "is damaged");

  vocab_ = static_cast<int64_t>(header.vocab);
  text_.name.assign(reinterpret_cast<const char*>(bytes.data()) + sizeof(header),
                    header.name_bytes);
  text_.seqlen = static_cast<int64_t>(header.seqlen);
  text_.ids.resize(header.ids);
  std::memcpy(text_.ids.data(), bytes.data() + ids_at, header.ids * sizeof(int32_t));
  for (int32_t id : text_.ids) require(id >= 0 && id < vocab_, "has an id outside its vocabulary");
  uint64_t at = head_bytes + sizeof(uint64_t);
  for (uint64_t i = 0; i < header.windows; ++i) {
    int64_t numbers[3];
    std::memcpy(numbers, bytes.data() + windows_at + i * sizeof(numbers), sizeof(numbers));
    const TextWindows::Window window{numbers[0], numbers[1], numbers[2]};
    const int64_t ids = static_cast<int64_t>(header.ids);
    require(window.begin >= 0 && window.begin <= ids && window.length >= 2 &&
                window.length <= text_.seqlen && window.length <= ids - window.begin &&
                window.scored >= 1 && window.scored < window.length,
            "has an impossible window");
    offsets_.push_back(at);
    const auto rows = CheckedMul(static_cast<uint64_t>(window.scored), RowBytes(header.vocab));
    const auto end = rows ? CheckedAdd(at + sizeof(uint64_t), *rows) : rows;
    require(end && *end <= bytes.size(), "ends too early");
    at = *end;
    text_.windows.push_back(window);
  }
  require(at == bytes.size(), "has bytes after its last window");
}

void KlBaseFile::Begin(size_t window) {
  const size_t rows = static_cast<size_t>(text_.windows[window].scored);
  left_ = file_.bytes().subspan(offsets_[window], rows * RowBytes(static_cast<uint64_t>(vocab_)));
  uint64_t fingerprint;
  std::memcpy(&fingerprint, left_.data() + left_.size(), sizeof(fingerprint));
  if (fingerprint != FingerprintOf(left_)) {
    throw Error("eval.bad_kl_base", file_.path().string(),
                "window " + std::to_string(window) + " is damaged",
                "write it again with --save-base");
  }
}

std::span<const float> KlBaseFile::Next(size_t count) {
  const size_t vocab = static_cast<size_t>(vocab_);
  const size_t row_bytes = RowBytes(vocab);
  FLATQUANT_CHECK(count * row_bytes <= left_.size());
  decoded_.resize(count * vocab);
  for (size_t row = 0; row < count; ++row) {
    const std::byte* from = left_.data() + row * row_bytes;
    float step;
    std::memcpy(&step, from, sizeof(step));
    from += sizeof(step);
    float* to = decoded_.data() + row * vocab;
    for (size_t i = 0; i < vocab; ++i) {
      uint16_t q;
      std::memcpy(&q, from + i * sizeof(q), sizeof(q));
      to[i] = -step * static_cast<float>(q);
    }
  }
  left_ = left_.subspan(count * row_bytes);
  return decoded_;
}

}  // namespace flatquant
