#include "flatquant/model/named_shapes.h"

#include <array>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

struct Shape {
  std::string_view name;
  int64_t hidden;
  int64_t ffn;
  int64_t layers;
  int64_t heads;
  int64_t kv_heads;
  int64_t vocab;
  double theta;
  bool qkv_bias;
};

// As in the networks' published config.json; head_dim = hidden / heads.
constexpr std::array kShapes = {
    Shape{"tinyllama-1.1b", 2048, 5632, 22, 32, 4, 32000, 1e4, false},
    Shape{"llama-2-7b", 4096, 11008, 32, 32, 32, 32000, 1e4, false},
    Shape{"llama-3-8b", 4096, 14336, 32, 32, 8, 128256, 5e5, false},
    Shape{"llama-2-70b", 8192, 28672, 80, 64, 8, 32000, 1e4, false},
    Shape{"qwen2.5-7b", 3584, 18944, 28, 28, 4, 152064, 1e6, true},
};

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

ModelConfig NamedShape(std::string_view name) {
  std::string known;
  for (const Shape& shape : kShapes) {
    known += (known.empty() ? "" : ", ") + std::string(shape.name);
    if (shape.name != name) continue;
    ModelConfig config;
    config.architecture = shape.qkv_bias ? Architecture::kQwen2 : Architecture::kLlama;
    config.hidden = shape.hidden;
    config.ffn = shape.ffn;
    config.layers = shape.layers;
    config.heads = shape.heads;
    config.kv_heads = shape.kv_heads;
    config.head_dim = shape.hidden / shape.heads;
    config.vocab = shape.vocab;
    config.max_positions = int64_t{1} << 17;  // whatever depth is asked for
    config.rope.theta = shape.theta;
    config.qkv_bias = shape.qkv_bias;
    return config;
  }
  throw Error("model.unknown_shape", "--shape " + std::string(name), "is not a shape known here",
              "use one of " + known);
}

}  // namespace flatquant
