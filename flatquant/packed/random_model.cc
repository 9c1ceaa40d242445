#include "flatquant/packed/random_model.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/base/rng.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

class Generator {
 public:
  Generator(const ModelConfig& config, const Scheme& scheme, uint64_t seed)
      : config_(config), scheme_(scheme), rng_(seed) {}

  PackedModel Model() {
    PackedModel model;
    model.config = config_;
    model.scheme = scheme_;
    model.embedding = BF16Matrix(config_.vocab, config_.hidden, 1.0);
    for (int64_t i = 0; i < config_.layers; ++i) model.blocks.push_back(Block());
    model.final_norm = Near(config_.hidden, 1.0);
    if (!config_.tied_embeddings) {
      model.lm_head = BF16Matrix(config_.vocab, config_.hidden, ColumnScale(config_.hidden));
    }
    model.provenance = {{"method", "random"}};
    return model;
  }

  void Group(int64_t group_size, PackedBlock* block) {
    for (Linear which : kLinears) {
      PackedLinear& linear = block->linear(which);
      const LinearShape shape = StoredShape(config_, *block, which);
      if (linear.bits > 8 || shape.cols <= group_size) continue;
      const int64_t groups = GroupCount(shape.cols, group_size);
      const std::vector<float> rows = linear.scale.ToFloat();
      const std::vector<float> factors = Near(shape.rows * groups, 1.0).ToFloat();
      std::vector<float> scales(factors.size());
      for (size_t i = 0; i < scales.size(); ++i) {
        scales[i] = factors[i] * rows[i / static_cast<size_t>(groups)];
      }
      linear.group_size = group_size;
      linear.scale = Tensor::Floats({shape.rows, groups}, std::move(scales));
    }
  }

  void Flatten(PackedBlock* block) {
    for (Site site : kSites) {
      if (block->site(site).act_bits <= 8) FlattenSite(site, block);
    }
  }

 private:
  PackedBlock Block() {
    PackedBlock block;
    block.input_norm = Near(config_.hidden, 1.0);
    block.post_attention_norm = Near(config_.hidden, 1.0);
    if (config_.qk_norm) {
      block.q_norm = Near(config_.head_dim, 1.0);
      block.k_norm = Near(config_.head_dim, 1.0);
    }
    for (Site site : kSites) block.site(site) = MakeSite(site);
    for (Linear linear : kLinears) {
      block.linear(linear) = MakeLinear(linear, ShapeOf(config_, linear));
    }
    block.cache = Cache();
    return block;
  }

  PackedLinear MakeLinear(Linear which, LinearShape shape) {
    PackedLinear linear;
    linear.bits = scheme_.weight_bits;
    if (linear.bits == 16) {
      linear.weight = BF16Matrix(shape.rows, shape.cols, ColumnScale(shape.cols));
    } else {
      const uint64_t range = uint64_t{1} << linear.bits;
      std::vector<int8_t> codes(static_cast<size_t>(shape.rows * shape.cols));
      for (int8_t& code : codes) {
        code = static_cast<int8_t>(SmallestCode(linear.bits) + static_cast<int>(rng_.Below(range)));
      }
      linear.weight = PackCodes(linear.bits, shape.rows, shape.cols, codes.data());
      // Uniform codes have a deviation of range / sqrt(12).
      const double step = ColumnScale(shape.cols) * std::sqrt(12.0) / static_cast<double>(range);
      linear.scale = Near(shape.rows, step);
    }
    if (HasBias(config_, which)) linear.bias = Near(shape.rows, 0.1);
    return linear;
  }

  PackedSite MakeSite(Site site) {
    PackedSite made;
    made.act_bits = scheme_.act_bits;
    if (made.act_bits == 16) return made;
    if (site == Site::kAttnOut) {
      made.left = Orthogonal(config_.heads);
    } else {
      const int64_t width = SiteWidth(config_, site);
      auto left = static_cast<int64_t>(std::sqrt(static_cast<double>(width)));
      while (width % left != 0) --left;
      made.left = Orthogonal(left);
      made.right = Orthogonal(width / left);
    }
    made.clips = {RandomClip()};
    return made;
  }

  void FlattenSite(Site which, PackedBlock* block) {
    PackedSite& site = block->site(which);
    const int64_t width = SiteWidth(config_, which);
    const int act_bits = site.act_bits;
    site = {};
    site.act_bits = act_bits;
    // A whole piece is about one deviation.
    site.act_scale = Near(1, 1.0 / LargestCode(act_bits));
    std::vector<ExtraColumn> extra;
    for (int64_t c = 0; c < width; ++c) {
      if (rng_.Below(4) != 0) continue;
      const auto channel = static_cast<int32_t>(c);
      if (rng_.Below(4) == 0) extra.push_back({channel, 0});
      extra.push_back({channel, 1});
      if (rng_.Below(4) == 0) extra.push_back({channel, 2});
    }
    site.extra_columns = PackExtraColumns(extra);
    for (Linear linear : LinearsOf(which)) {
      block->linear(linear) = MakeLinear(linear, StoredShape(config_, *block, linear));
    }
  }

  PackedCache Cache() {
    PackedCache cache;
    cache.k_bits = scheme_.k_bits;
    cache.v_bits = scheme_.v_bits;
    if (cache.k_bits != 16) {
      cache.k_clip = RandomClip();
      // (U S)^-T = U S^-1 for an orthogonal U and a diagonal S.
      const int64_t n = config_.head_dim;
      std::vector<float> k = Orthogonal(n).ToFloat();
      std::vector<float> q = k;
      for (int64_t c = 0; c < n; ++c) {
        const auto s = static_cast<float>(0.5 + rng_.Uniform());
        for (int64_t r = 0; r < n; ++r) {
          k[static_cast<size_t>(r * n + c)] *= s;
          q[static_cast<size_t>(r * n + c)] /= s;
        }
      }
      cache.k_transform = Tensor::Floats({n, n}, std::move(k));
      cache.q_transform = Tensor::Floats({n, n}, std::move(q));
    }
    if (cache.v_bits != 16) cache.v_clip = RandomClip();
    return cache;
  }

  // The product of two reflections I - 2 v v^T / (v^T v).
  Tensor Orthogonal(int64_t n) {
    const auto size = static_cast<size_t>(n);
    std::vector<double> matrix(size * size, 0.0);
    for (size_t i = 0; i < size; ++i) matrix[i * size + i] = 1.0;
    for (int reflection = 0; reflection < 2; ++reflection) {
      std::vector<double> v(size);
      double norm = 0;
      for (double& x : v) {
        x = rng_.Normal();
        norm += x * x;
      }
      for (size_t r = 0; r < size; ++r) {
        double along = 0;
        for (size_t c = 0; c < size; ++c) along += matrix[r * size + c] * v[c];
        for (size_t c = 0; c < size; ++c) matrix[r * size + c] -= 2 * along / norm * v[c];
      }
    }
    return Tensor::Floats({n, n}, std::vector<float>(matrix.begin(), matrix.end()));
  }

  // n positive values within 20% of `center`.
  Tensor Near(int64_t n, double center) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) {
      value = static_cast<float>(center * (0.8 + 0.4 * rng_.Uniform()));
    }
    return Tensor::Floats({n}, std::move(values));
  }

  Tensor BF16Matrix(int64_t rows, int64_t cols, double deviation) {
    std::vector<uint16_t> values(static_cast<size_t>(rows * cols));
    for (uint16_t& value : values) {
      value = FloatToBF16(static_cast<float>(deviation * rng_.Normal()));
    }
    return Tensor::Own(DType::kBF16, {rows, cols}, std::move(values));
  }

  Clip RandomClip() {
    const auto fraction = [&] { return static_cast<float>(0.8 + 0.2 * rng_.Uniform()); };
    const float max = fraction();
    return {max, fraction()};
  }

  // The deviation of weights that keep the size of their input.
  static double ColumnScale(int64_t cols) { return 1.0 / std::sqrt(static_cast<double>(cols)); }

  const ModelConfig& config_;
  const Scheme& scheme_;
  Rng rng_;
};

}  // namespace

std::string ConfigJson(const ModelConfig& config) {
  nlohmann::ordered_json out = {{"model_type", ArchitectureName(config.architecture)},
                                {"hidden_size", config.hidden},
                                {"intermediate_size", config.ffn},
                                {"num_hidden_layers", config.layers},
                                {"num_attention_heads", config.heads},
                                {"num_key_value_heads", config.kv_heads},
                                {"head_dim", config.head_dim},
                                {"vocab_size", config.vocab},
                                {"max_position_embeddings", config.max_positions},
                                {"rms_norm_eps", config.rms_eps},
                                {"rope_theta", config.rope.theta},
                                {"tie_word_embeddings", config.tied_embeddings},
                                {"attention_bias", config.qkv_bias},
                                {"mlp_bias", config.mlp_bias},
                                {"sliding_window", nullptr},
                                {"bos_token_id", nullptr},
                                {"eos_token_id", config.eos},
                                {"torch_dtype", "bfloat16"}};
  if (config.bos) out["bos_token_id"] = *config.bos;
  if (config.sliding_window) {
    out["sliding_window"] = *config.sliding_window;
    out["use_sliding_window"] = true;
    out["max_window_layers"] = 0;
  }
  switch (config.rope.type) {
    case RopeConfig::Type::kDefault:
      break;
    case RopeConfig::Type::kLinear:
      out["rope_scaling"] = {{"rope_type", "linear"}, {"factor", config.rope.factor}};
      break;
    case RopeConfig::Type::kLlama3:
      out["rope_scaling"] = {
          {"rope_type", "llama3"},
          {"factor", config.rope.factor},
          {"low_freq_factor", config.rope.low_freq_factor},
          {"high_freq_factor", config.rope.high_freq_factor},
          {"original_max_position_embeddings", config.rope.original_max_positions}};
      break;
  }
  return out.dump(2) + "\n";
}

PackedModel RandomPackedModel(const ModelConfig& config, const Scheme& scheme, uint64_t seed) {
  return Generator(config, scheme, seed).Model();
}

void FlattenRandomModel(uint64_t seed, PackedModel* model) {
  Generator generator(model->config, model->scheme, seed);
  for (PackedBlock& block : model->blocks) generator.Flatten(&block);
}

void GroupRandomModel(uint64_t seed, int64_t group_size, PackedModel* model) {
  Generator generator(model->config, model->scheme, seed);
  for (PackedBlock& block : model->blocks) generator.Group(group_size, &block);
}

}  // namespace flatquant
