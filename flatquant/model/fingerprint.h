#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace flatquant {

// FNV-1a over 64-bit little-endian words (the original goes byte by byte, which is
// eight times as slow); a last word is filled up with zeros, and the bytes' number
// is added. Finds accidents, not attacks.
class Fingerprint {
 public:
  void Add(uint64_t word) { hash_ = (hash_ ^ word) * 0x100000001b3u; }
  void Add(std::span<const std::byte> bytes);
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// Tells models apart: config.json, and of every *.safetensors file its name, size,
// header and a thousand samples spread over its data. Errors: file.*.
uint64_t ModelFingerprint(const std::filesystem::path& directory);

}  // namespace flatquant
