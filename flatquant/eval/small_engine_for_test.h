#pragma once

#include <memory>
#include <string>

#include "flatquant/base/rng.h"
#include "flatquant/eval/text_windows.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/packed/small_config_for_test.h"
#include "flatquant/runtime/engine.h"

// A model of random weights and a text for it, for the tests of this room.
namespace flatquant::testing {

inline std::unique_ptr<Engine> SmallEngine(uint64_t seed, const char* scheme = "w16a16kv16") {
  return Engine::FromPacked(RandomPackedModel(SmallConfig(512), Scheme::Parse(scheme), seed),
                            {.threads = 2});
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
