#pragma once

#include <cstdint>
#include <string>

#include "flatquant/eval/boundary.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// What 'flatquant eval' was asked for; empty and 0 where an option was not given.
struct EvalArguments {
  std::string directory;
  std::string specs;
  std::string tasks;
  std::string tasks_dir;
  std::string log_samples;
  std::string vs;
  std::string kl_base;
  std::string save_base;
  std::string resume;
  int64_t seqlen = 0;
  int64_t stride = 0;
  int64_t limit = 0;
  BosRule bos = BosRule::kTokenizer;
  EngineOptions engine;
  std::string json;
};

// Reads all data first, so that a bad file costs no time, then evaluates, prints
// and writes.
void RunEval(const EvalArguments& arguments);

}  // namespace flatquant
