#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "flatquant/base/tensor.h"
#include "flatquant/model/config.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/scheme.h"

namespace flatquant {

// The waist between compress/ and runtime/: a quantized network as data, with no
// trace of the method that made it. FORMAT.md gives its bytes on disk.
//
// Notation: x is a row vector; a linear computes y = x W^T + bias with W [rows,
// cols]; round is half to even.

// Factors in (0, 1] that shrink a token's range before its scale is computed.
struct Clip {
  float max = 1.0f;
  float min = 1.0f;
};

// One linear layer; cols are the site's width, or its columns where it is flattened
// (StoredShape of flattening.h). With bits <= 8, W[r][c] = scale[r][c / group_size] *
// q[r][c], q a signed integer in [-2^(bits-1), 2^(bits-1) - 1]:
//   bits 2..4   weight is U8 [rows, ceil(cols / 2)]: two's complement nibbles,
//               even column in the low nibble (an odd last nibble is zero)
//   bits 5..8   weight is I8 [rows, cols]
//   bits 16     weight is F32, F16 or BF16 [rows, cols] and scale is undefined
//
// Groups are for memory and accuracy, not for speed: sums of integer products end with each
// group, so that runtimes may dequantize such a weight instead of multiplying integers.
struct PackedLinear {
  int bits = 16;
  // Columns that share a scale, below cols, the last group possibly shorter; 0: one scale
  // per row.
  int64_t group_size = 0;
  Tensor weight;
  Tensor scale;  // F32 [rows], or [rows, GroupCount(cols, group_size)]
  Tensor bias;   // F32 [rows]; undefined without

  bool is_grouped() const { return group_size > 0; }
};

// Scales of a row. cols >= 1.
constexpr int64_t GroupCount(int64_t cols, int64_t group_size) {
  return group_size > 0 ? (cols - 1) / group_size + 1 : 1;
}

// The online half of a site: x viewed as X [L, R] (row-major, L * R = width)
// becomes left^T X right; an undefined matrix is the identity. Then, with
// act_bits < 16, per token and clip:
//   s = max(|clip.max * max(x, 0)|, |clip.min * min(x, 0)|) / (2^(b-1) - 1), 1 if all zero
//   q = clamp(round(x / s), -2^(b-1), 2^(b-1) - 1)
//
// Or, flattened: no matrices, a constant step s = act_scale, and an integer q that may
// exceed the grid, cut into pieces that do not, a column of the linears for each. With
// top = 2^(b-1) - 1:
//   q = round(x / s), piece i = sign(q) clamp(|q| - i top, 0, top)
// The linears have width + N columns: the first `width` read piece 0 of each channel,
// the others what extra_columns says (flattening.h).
struct PackedSite {
  Tensor left;   // F32 [L, L]
  Tensor right;  // F32 [R, R]
  int act_bits = 16;
  Tensor act_scale;      // F32 [1]: the site is flattened
  Tensor extra_columns;  // I32 [N, 2]: channel and piece; undefined for N = 0
  // One entry shared by all linears of the site, or one per linear in
  // LinearsOf(site) order (the original FlatQuant's layout). Flattened: one that is 1.
  std::vector<Clip> clips = std::vector<Clip>(1);

  bool has_transform() const { return left.defined() || right.defined(); }
  bool is_flattened() const { return act_scale.defined(); }
};

// The KV cache. After RoPE (and q/k norm): q <- q q_transform, k <- k k_transform
// per head (undefined = identity; q_transform = k_transform^-T, so q k^T keeps its
// value). V's transform is folded into the weights. With bits < 16, asymmetric
// per token and KV head, lo = clip.min * min(x, 0), hi = clip.max * max(x, 0):
//   s = (hi - lo) / (2^b - 1), z = round(-lo / s), q = clamp(round(x / s) + z, 0, 2^b - 1)
// and an all-zero vector takes s = 1, z = 0.
struct PackedCache {
  int k_bits = 16;
  int v_bits = 16;
  Clip k_clip;
  Clip v_clip;
  Tensor k_transform;  // F32 [head_dim, head_dim]
  Tensor q_transform;  // F32 [head_dim, head_dim]
};

struct PackedBlock {
  Tensor input_norm;           // F32 [hidden], the site's diagonal folded in
  Tensor post_attention_norm;  // F32 [hidden]
  Tensor q_norm;               // F32 [head_dim], only with qk_norm
  Tensor k_norm;
  std::array<PackedLinear, 7> linears;  // indexed by Linear
  std::array<PackedSite, 4> sites;      // indexed by Site
  PackedCache cache;

  PackedLinear& linear(Linear which) { return linears[static_cast<size_t>(which)]; }
  const PackedLinear& linear(Linear which) const { return linears[static_cast<size_t>(which)]; }
  PackedSite& site(Site which) { return sites[static_cast<size_t>(which)]; }
  const PackedSite& site(Site which) const { return sites[static_cast<size_t>(which)]; }
};

// The output projection W [vocab, hidden]: quantized like a linear, one scale per
// row. It is lm_head, or where that is undefined the embedding, which then is the
// same table: row i stands for scale[i] * codes in both uses.
struct PackedHead {
  int bits = 16;
  int act_bits = 16;  // of the activations that enter it, per token as at a site with clip 1
  Tensor scale;       // F32 [vocab], with bits <= 8
};

struct PackedModel {
  ModelConfig config;
  Scheme scheme;
  std::vector<PackedBlock> blocks;
  Tensor embedding;   // float [vocab, hidden], or the head's codes when tied
  Tensor final_norm;  // F32 [hidden]
  Tensor lm_head;     // float [vocab, hidden] or codes; undefined when tied to the embedding
  PackedHead head;

  // What the source's weights were folded with, by the names of transforms.safetensors
  // (FORMAT.md); none where it is not known. ReadPackedModel leaves it out.
  std::optional<std::map<std::string, Tensor>> transforms;

  // Where the model came from, for people and reports: "tool_version",
  // "method", "seed", "data", ... No consumer may branch on it.
  std::map<std::string, std::string> provenance;
};

// Whether a directory's config.json says quant_method "flatquant".
bool IsPackedDirectory(const std::filesystem::path& directory);

// Maps and validates a packed directory. Every tensor lies at a multiple of its
// element's size. Weights are not read (see check.h's CheckCodes). Errors: packed.newer_version,
// packed.bad_config, packed.missing_tensor, packed.wrong_shape,
// packed.wrong_dtype, packed.bad_value (a scale, clip or transform that is not
// finite, a scale <= 0, a clip outside (0, 1]), packed.extra_tensor; also
// config.*, safetensors.*, checkpoint.*.
PackedModel ReadPackedModel(const std::filesystem::path& directory);

// Writes `model` into `directory` (created if need be): config.json (that of
// source_directory plus quantization_config), model*.safetensors, tokenizer and
// generation files copied byte for byte. All or nothing: the directory is built
// beside its final name and renamed; an existing packed directory of that name
// is replaced as a whole, as is an empty one; anything else there is refused
// (packed.not_replaceable). The model is checked first and the result read back
// before it takes its name, so that all errors of ReadPackedModel can appear;
// also file.* (disk full included).
// report: the text of report.json, what is known of the run that made the model; with
// none there is no such file. shard_bytes: start a new shard beyond this size.
void WritePackedModel(const PackedModel& model, const std::filesystem::path& source_directory,
                      const std::filesystem::path& directory, const std::string& report = {},
                      uint64_t shard_bytes = uint64_t{5} << 30);

// Throws packed.not_replaceable if WritePackedModel would refuse this directory:
// for the start of long work.
void CheckPackedDestination(const std::filesystem::path& directory);

}  // namespace flatquant
