#pragma once

#include <memory>
#include <string>

#include "flatquant/base/rng.h"
#include "flatquant/eval/text_windows.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine.h"

// A model of random weights and a text for it, for the tests of this room.
namespace flatquant::testing {

inline std::unique_ptr<Engine> SmallEngine(uint64_t seed, const char* scheme = "w16a16kv16") {
  ModelConfig config;
  config.hidden = 24;
  config.ffn = 44;
  config.layers = 2;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 10;
  config.vocab = 50;
  config.max_positions = 512;
  return Engine::FromPacked(RandomPackedModel(config, Scheme::Parse(scheme), seed), {.threads = 2});
}

// Random ids in `count` windows one after another.
inline TextWindows RandomText(int64_t seqlen, int64_t count, uint64_t seed) {
  TextWindows text{"random", {}, {}, seqlen};
  Rng rng(seed);
  for (int64_t i = 0; i < seqlen * count; ++i) {
    text.ids.push_back(static_cast<int32_t>(rng.Below(50)));
  }
  for (int64_t i = 0; i < count; ++i) text.windows.push_back({i * seqlen, seqlen, seqlen - 1});
  return text;
}

}  // namespace flatquant::testing
