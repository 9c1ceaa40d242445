#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "flatquant/packed/flattening.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/packed_model.h"

// A slow forward pass in double, straight from packed_model.h's formulas, for the
// tests: no cache, no blocks, no kernels, everything dequantized.
namespace flatquant::oracle {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

// Rounding depends on values that the engine has in float: x / s is taken in
// float here too, so that only sums before it can differ.
inline double QuantizeSymmetric(double x, double scale, int bits) {
  const double top = (1 << (bits - 1)) - 1;
  return std::clamp(std::nearbyint(x / scale), -top - 1, top);
}

inline Row FakeQuantActivation(const Row& x, int bits, Clip clip) {
  if (bits == 16) return x;
  double hi = 0, lo = 0;
  for (double v : x) {
    hi = std::max(hi, v);
    lo = std::min(lo, v);
  }
  double scale = std::max(clip.max * hi, -clip.min * lo) / ((1 << (bits - 1)) - 1);
  if (scale == 0) scale = 1;
  Row y;
  for (double v : x) y.push_back(QuantizeSymmetric(v, scale, bits) * scale);
  return y;
}

inline Row FakeQuantKv(const Row& x, int bits, Clip clip) {
  if (bits == 16) return x;
  double hi = 0, lo = 0;
  for (double v : x) {
    hi = std::max(hi, v);
    lo = std::min(lo, v);
  }
  hi *= clip.max;
  lo *= clip.min;
  const double top = (1 << bits) - 1;
  const double scale = hi > lo ? (hi - lo) / top : 1;
  const double zero = std::nearbyint(-lo / scale);
  Row y;
  for (double v : x) {
    y.push_back((std::clamp(std::nearbyint(v / scale) + zero, 0.0, top) - zero) * scale);
  }
  return y;
}

inline Row Norm(const Row& x, const Tensor& weight, double eps) {
  const std::vector<float> w = weight.ToFloat();
  double squares = 0;
  for (double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / static_cast<double>(x.size()) + eps);
  Row y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(x[i] * scale * w[i]);
  return y;
}

// left^T X right of a row vector x.
inline Row Transform(const Row& x, const Tensor& left, const Tensor& right) {
  const size_t n = x.size();
  const size_t R = right.defined()  ? static_cast<size_t>(right.shape[0])
                   : left.defined() ? n / static_cast<size_t>(left.shape[0])
                                    : n;
  const size_t L = n / R;
  const std::vector<float> l = left.defined() ? left.ToFloat() : std::vector<float>();
  const std::vector<float> r = right.defined() ? right.ToFloat() : std::vector<float>();
  Row half(x);
  if (right.defined()) {
    for (size_t a = 0; a < L; ++a) {
      for (size_t j = 0; j < R; ++j) {
        half[a * R + j] = 0;
        for (size_t b = 0; b < R; ++b) half[a * R + j] += x[a * R + b] * r[b * R + j];
      }
    }
  }
  if (!left.defined()) return half;
  Row y(n, 0.0);
  for (size_t i = 0; i < L; ++i) {
    for (size_t a = 0; a < L; ++a) {
      for (size_t j = 0; j < R; ++j) y[i * R + j] += l[a * L + i] * half[a * R + j];
    }
  }
  return y;
}

inline Row Multiply(const Row& x, const PackedLinear& linear, int64_t rows) {
  Row y;
  std::vector<float> w(x.size());
  const std::vector<float> bias =
      linear.bias.defined() ? linear.bias.ToFloat() : std::vector<float>();
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(linear, r, static_cast<int64_t>(x.size()), w.data());
    double sum = bias.empty() ? 0.0 : bias[static_cast<size_t>(r)];
    for (size_t c = 0; c < x.size(); ++c) sum += x[c] * w[c];
    y.push_back(sum);
  }
  return y;
}

class Forward {
 public:
  explicit Forward(const PackedModel& model) : model_(model), config_(model.config) {}

  // Logits of every position, [tokens][vocab].
  Rows Logits(const std::vector<int32_t>& tokens) {
    const std::vector<float> table =
        Dequantize(EmbeddingTable(model_), config_.vocab, config_.hidden).ToFloat();
    const size_t hidden = static_cast<size_t>(config_.hidden);
    Rows stream;
    for (int32_t id : tokens) {
      const float* row = table.data() + static_cast<size_t>(id) * hidden;
      stream.emplace_back(row, row + hidden);
    }
    for (const PackedBlock& block : model_.blocks) Block(block, stream);
    const PackedLinear head = HeadLinear(model_);
    for (Row& x : stream) {
      x = FakeQuantActivation(Norm(x, model_.final_norm, config_.rms_eps), model_.head.act_bits,
                              {});
      x = Multiply(x, head, config_.vocab);
    }
    return stream;
  }

 private:
  // The site's linears of one token's activation.
  Rows ApplySite(const PackedBlock& block, Site which, const Row& x) {
    const PackedSite& site = block.site(which);
    if (site.is_flattened()) return ApplyFlattened(block, which, x);
    const Row transformed = Transform(x, site.left, site.right);
    Rows outputs;
    for (size_t i = 0; i < LinearsOf(which).size(); ++i) {
      const Clip clip = site.clips[site.clips.size() == 1 ? 0 : i];
      const Linear linear = LinearsOf(which)[i];
      outputs.push_back(Multiply(FakeQuantActivation(transformed, site.act_bits, clip),
                                 block.linear(linear), ShapeOf(config_, linear).rows));
    }
    return outputs;
  }

  // The pieces of x's channels by their definition, each in its column.
  Rows ApplyFlattened(const PackedBlock& block, Site which, const Row& x) {
    const PackedSite& site = block.site(which);
    const double scale = static_cast<double>(site.act_scale.ToFloat()[0]);
    const double top = (1 << (site.act_bits - 1)) - 1;
    const auto piece = [&](double value, int32_t index) {
      const double q = std::nearbyint(value / scale);
      const double size = std::clamp(std::abs(q) - index * top, 0.0, top);
      return (q < 0 ? -size : size) * scale;
    };
    Row columns;
    for (double value : x) columns.push_back(piece(value, 0));
    for (const ExtraColumn& extra : UnpackExtraColumns(site.extra_columns)) {
      columns.push_back(piece(x[static_cast<size_t>(extra.channel)], extra.piece));
    }
    Rows outputs;
    for (const Linear linear : LinearsOf(which)) {
      outputs.push_back(Multiply(columns, block.linear(linear), ShapeOf(config_, linear).rows));
    }
    return outputs;
  }

  // Splits a token's q or k into heads: norm, rotation, the cache's transform.
  Rows Heads(const Row& x, const Tensor& norm, const Tensor& transform, size_t position) {
    const size_t n = static_cast<size_t>(config_.head_dim);
    const std::vector<double> frequencies = RopeFrequencies(config_.rope, config_.head_dim);
    Rows heads;
    for (size_t h = 0; h < x.size() / n; ++h) {
      Row head(x.begin() + static_cast<std::ptrdiff_t>(h * n),
               x.begin() + static_cast<std::ptrdiff_t>((h + 1) * n));
      if (config_.qk_norm) head = Norm(head, norm, config_.rms_eps);
      for (size_t i = 0; i < n / 2; ++i) {
        const double angle = static_cast<double>(position) * frequencies[i];
        const double a = head[i], b = head[i + n / 2];
        head[i] = a * std::cos(angle) - b * std::sin(angle);
        head[i + n / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
      heads.push_back(Transform(head, {}, transform));
    }
    return heads;
  }

  void Block(const PackedBlock& block, Rows& stream) {
    const size_t n = static_cast<size_t>(config_.head_dim);
    const size_t group = static_cast<size_t>(config_.heads / config_.kv_heads);
    std::vector<Rows> keys, values;  // [position][KV head]
    for (size_t t = 0; t < stream.size(); ++t) {
      Row& x = stream[t];
      const Rows qkv = ApplySite(block, Site::kAttnIn, Norm(x, block.input_norm, config_.rms_eps));
      const PackedCache& cache = block.cache;
      const Rows q = Heads(qkv[0], block.q_norm, cache.q_transform, t);
      Rows k = Heads(qkv[1], block.k_norm, cache.k_transform, t);
      for (Row& head : k) head = FakeQuantKv(head, cache.k_bits, cache.k_clip);
      Rows v;
      for (size_t h = 0; h < qkv[2].size() / n; ++h) {
        const auto begin = qkv[2].begin() + static_cast<std::ptrdiff_t>(h * n);
        v.push_back(FakeQuantKv(Row(begin, begin + static_cast<std::ptrdiff_t>(n)), cache.v_bits,
                                cache.v_clip));
      }
      keys.push_back(k);
      values.push_back(v);
      Row mixed;
      const size_t window = static_cast<size_t>(config_.sliding_window.value_or(0));
      const size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
      for (size_t h = 0; h < q.size(); ++h) {
        Row weights;
        for (size_t j = first; j <= t; ++j) {
          double dot = 0;
          for (size_t i = 0; i < n; ++i) dot += q[h][i] * keys[j][h / group][i];
          weights.push_back(dot / std::sqrt(static_cast<double>(n)));
        }
        const double top = *std::max_element(weights.begin(), weights.end());
        double sum = 0;
        for (double& w : weights) sum += w = std::exp(w - top);
        for (size_t i = 0; i < n; ++i) {
          double y = 0;
          for (size_t j = first; j <= t; ++j)
            y += weights[j - first] / sum * values[j][h / group][i];
          mixed.push_back(y);
        }
      }
      const Row attention = ApplySite(block, Site::kAttnOut, mixed)[0];
      for (size_t i = 0; i < x.size(); ++i) x[i] += attention[i];
      const Rows mlp =
          ApplySite(block, Site::kMlpIn, Norm(x, block.post_attention_norm, config_.rms_eps));
      Row activated;
      for (size_t i = 0; i < mlp[0].size(); ++i) {
        activated.push_back(mlp[0][i] / (1 + std::exp(-mlp[0][i])) * mlp[1][i]);
      }
      const Row down = ApplySite(block, Site::kMlpOut, activated)[0];
      for (size_t i = 0; i < x.size(); ++i) x[i] += down[i];
    }
  }

  const PackedModel& model_;
  const ModelConfig& config_;
};

}  // namespace flatquant::oracle
