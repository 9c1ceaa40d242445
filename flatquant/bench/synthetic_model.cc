#include "flatquant/bench/synthetic_model.h"

#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::bench {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"bf16", "int4", "quarot", "flatquant"};

class Generator {
 public:
  Generator(const ModelConfig& config, Variant variant, const SyntheticBits& bits, uint64_t seed)
      : config_(config), variant_(variant), bits_(bits), rng_(seed) {}

  PackedModel Model() {
    PackedModel model;
    model.config = config_;
    model.config.tied_embeddings = false;
    model.scheme = is_float() ? Scheme{16, 16, 16, 16} : Scheme{4, 4, bits_.cache, bits_.cache};
    model.embedding = FloatMatrix(config_.vocab, config_.hidden);
    model.blocks.assign(static_cast<size_t>(config_.layers), Block());
    model.final_norm = Ones(config_.hidden);
    if (is_float() || bits_.head == 16) {
      model.lm_head = FloatMatrix(config_.vocab, config_.hidden);
    } else {
      PackedLinear head = IntegerMatrix(config_.vocab, config_.hidden, bits_.head);
      model.lm_head = std::move(head.weight);
      model.head = {bits_.head, kHeadActBits, std::move(head.scale)};
    }
    model.provenance = {{"method", "synthetic"}};
    return model;
  }

 private:
  bool is_float() const { return variant_ == Variant::kBF16; }

  PackedBlock Block() {
    PackedBlock block;
    block.input_norm = Ones(config_.hidden);
    block.post_attention_norm = Ones(config_.hidden);
    for (Linear which : kLinears) {
      const LinearShape shape = ShapeOf(config_, which);
      PackedLinear& linear = block.linear(which);
      if (is_float()) {
        linear.weight = FloatMatrix(shape.rows, shape.cols);
      } else {
        linear = IntegerMatrix(shape.rows, shape.cols, 4);
      }
      if (HasBias(config_, which)) linear.bias = Tensor::Floats({shape.rows}, Zeros(shape.rows));
    }
    if (is_float()) return block;
    for (Site site : kSites) block.site(site) = MakeSite(site);
    block.cache.k_bits = block.cache.v_bits = bits_.cache;
    if (variant_ != Variant::kInt4 && bits_.cache != 16) {
      block.cache.k_transform = block.cache.q_transform = Orthogonal(config_.head_dim);
    }
    return block;
  }

  PackedSite MakeSite(Site site) {
    PackedSite made;
    made.act_bits = 4;
    const bool is_folded = site == Site::kAttnIn || site == Site::kMlpIn;
    if (variant_ == Variant::kInt4 || (variant_ == Variant::kQuaRot && is_folded)) return made;
    if (site == Site::kAttnOut) {
      made.left = Orthogonal(config_.heads);
      return made;
    }
    const Factors factors = NearestFactors(SiteWidth(config_, site));
    made.left = Orthogonal(factors.left);
    made.right = Orthogonal(factors.right);
    return made;
  }

  // Random codes, scaled so that W x is about as large as x.
  PackedLinear IntegerMatrix(int64_t rows, int64_t cols, int bits) {
    PackedLinear linear;
    linear.bits = bits;
    const int64_t row_bytes = PackedRowBytes(bits, cols);
    std::vector<std::byte> bytes(static_cast<size_t>(rows * row_bytes));
    Fill(bytes.data(), bytes.size(), ~uint64_t{0}, 0);
    linear.weight = Tensor::Own(CodeDType(bits), {rows, row_bytes}, std::move(bytes));
    // Uniform codes have a deviation of 2^bits / sqrt(12).
    const double step = std::sqrt(12.0 / static_cast<double>(cols)) / (1 << bits);
    linear.scale = Tensor::Floats(
        {rows}, std::vector<float>(static_cast<size_t>(rows), static_cast<float>(step)));
    return linear;
  }

  // bfloat16 numbers of random sign, in [1, 2) times a power of two near 1 / sqrt(cols).
  Tensor FloatMatrix(int64_t rows, int64_t cols) {
    std::vector<uint16_t> values(static_cast<size_t>(rows * cols));
    const int exponent = 127 - static_cast<int>(std::lround(std::log2(cols) / 2 + 0.5));
    constexpr uint64_t kSignAndFraction = 0x807f807f807f807fu;
    constexpr uint64_t kFour = 0x0001000100010001u;
    Fill(values.data(), values.size() * sizeof(uint16_t), kSignAndFraction,
         kFour * (static_cast<uint64_t>(exponent) << 7));
    return Tensor::Own(DType::kBF16, {rows, cols}, std::move(values));
  }

  // Random words, `mask`ed, with `bits` set.
  void Fill(void* memory, size_t bytes, uint64_t mask, uint64_t bits) {
    auto* at = static_cast<std::byte*>(memory);
    for (size_t done = 0; done < bytes; done += sizeof(uint64_t)) {
      const uint64_t word = (rng_.Next() & mask) | bits;
      std::memcpy(at + done, &word, std::min(sizeof(word), bytes - done));
    }
  }

  Tensor Ones(int64_t n) const {
    return Tensor::Floats({n}, std::vector<float>(static_cast<size_t>(n), 1.0f));
  }
  static std::vector<float> Zeros(int64_t n) {
    return std::vector<float>(static_cast<size_t>(n), 0.0f);
  }

  // A reflection I - 2 v v^T / (v^T v): dense, orthogonal, its own inverse.
  Tensor Orthogonal(int64_t n) {
    const auto size = static_cast<size_t>(n);
    std::vector<double> v(size);
    double norm = 0;
    for (double& x : v) {
      x = rng_.Normal();
      norm += x * x;
    }
    std::vector<float> matrix(size * size);
    for (size_t r = 0; r < size; ++r) {
      for (size_t c = 0; c < size; ++c) {
        matrix[r * size + c] = static_cast<float>((r == c ? 1.0 : 0.0) - 2 * v[r] * v[c] / norm);
      }
    }
    return Tensor::Floats({n, n}, std::move(matrix));
  }

  const ModelConfig& config_;
  Variant variant_;
  SyntheticBits bits_;
  Rng rng_;
};

}  // namespace

std::string_view VariantName(Variant variant) { return kNames[static_cast<size_t>(variant)]; }

std::vector<std::string> VariantNames() { return {kNames.begin(), kNames.end()}; }

Variant ParseVariant(std::string_view name) {
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Variant>(i);
  }
  throw Error("bench.unknown_variant", "--variant " + std::string(name), "is not known",
              "use bf16, int4, quarot or flatquant");
}

Factors NearestFactors(int64_t width) {
  auto left = static_cast<int64_t>(std::sqrt(static_cast<double>(width)));
  while (width % left != 0) --left;
  return {left, width / left};
}

PackedModel SyntheticModel(const ModelConfig& config, Variant variant, const SyntheticBits& bits,
                           uint64_t seed) {
  return Generator(config, variant, bits, seed).Model();
}

}  // namespace flatquant::bench
