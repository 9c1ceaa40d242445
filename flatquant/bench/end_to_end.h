#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flatquant/bench/result.h"
#include "flatquant/runtime/engine.h"

namespace flatquant::bench {

struct Plan {
  std::vector<int64_t> prompts = {512};    // tokens of a prompt; 0: none
  std::vector<int64_t> generated = {128};  // tokens of a continuation; 0: none
  std::vector<int64_t> depths = {0};       // tokens that the context holds beforehand
  std::vector<int64_t> batches = {1};      // sequences that are continued together
  int repetitions = 5;
  bool profile = false;
};

// What a benchmark says about the model that it runs.
struct Subject {
  std::string model;     // "tinyllama-1.1b"
  std::string variant;   // "flatquant"
  bool integers = true;  // linears multiply integers, else bfloat16
};

// Tokens per second of the whole network: tests ppN (a prompt of N tokens) and tgN
// (N tokens, one by one, for each sequence of the batch), "@ dN" after a context of N
// tokens. On the CPU a prompt fills a pass, whatever the batch, so batches matter to tgN
// only; on a GPU ppN is N tokens of each sequence. A step ends when its tokens are drawn. The limit
// of pp is the arithmetic peak over the linears' two operations per weight and token; of tg the
// read bandwidth over the weights, once per step, and each sequence's K and V. The machine's limits
// are measured before and after, and the larger ones count. Errors: as Engine::Forward.
void RunEndToEnd(const Engine& engine, const Subject& subject, const Plan& plan, Run* run);

// Microseconds of one block, a mean over all blocks, with the shares of its phases:
// one pass of N tokens for ppN, one step of each batch for tg1.
void RunLayer(const Engine& engine, const Subject& subject, const Plan& plan, Run* run);

}  // namespace flatquant::bench
