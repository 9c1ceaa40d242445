#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "flatquant/base/file.h"
#include "flatquant/eval/logit_rows.h"
#include "flatquant/eval/text_windows.h"

namespace flatquant {

// A base model's predictions over a text, kept, so that many models can be compared
// with it without running it again.
//
// Little-endian. "FQKLBASE", u32 version 1, u32 bytes of the text's name, u64 vocab,
// u64 ids, u64 windows, u64 seqlen; the name; per window u64 begin, length, scored;
// the ids as int32; then the u64 fingerprint of all before it. Then per window its
// rows, one per scored token, and the u64 fingerprint of their bytes. A row is the
// float32 step and `vocab` uint16 q, log p = c - q * step: the likeliest token alone
// has q 0, and what is 32 nats less likely has 65535. So rows keep log p within
// 2.5e-4 (and a second best that close stays second), which moves a divergence,
// quadratic in it, by some 1e-8.

// Writes the rows of `rows` over `text`, with progress and the running perplexity on
// stderr; the file appears whole or not at all. Returns the scored tokens' negative
// log-likelihoods. Errors: file.*, eval.not_finite, those of the rows.
std::vector<float> WriteKlBase(const std::filesystem::path& path, const TextWindows& text,
                               LogitRows& rows, ThreadPool& pool);

// A file that WriteKlBase wrote. Everything but the rows is checked when it is
// opened, a window's rows at Begin. Errors: eval.bad_kl_base (not such a file, a newer
// version, sizes that do not fit, damaged), file.*.
class KlBaseFile : public LogitRows {
 public:
  explicit KlBaseFile(const std::filesystem::path& path);

  const TextWindows& text() const { return text_; }
  int64_t vocab() const override { return vocab_; }
  void Begin(size_t window) override;
  std::span<const float> Next(size_t count) override;

 private:
  MappedFile file_;
  TextWindows text_;
  int64_t vocab_ = 0;
  std::vector<uint64_t> offsets_;    // of each window's rows
  std::span<const std::byte> left_;  // rows of the window that are not decoded
  std::vector<float> decoded_;
};

}  // namespace flatquant
