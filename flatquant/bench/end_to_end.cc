#include "flatquant/bench/end_to_end.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "flatquant/base/rng.h"
#include "flatquant/bench/ceiling.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

// Steps before the clock starts, so that every thread has its scratch memory.
constexpr int64_t kWarmUpSteps = 4;

uint64_t LinearParameters(const ModelConfig& config) {
  uint64_t block = 0;
  for (Linear which : kLinears) {
    const LinearShape shape = ShapeOf(config, which);
    block += static_cast<uint64_t>(shape.rows * shape.cols);
  }
  return block * static_cast<uint64_t>(config.layers);
}

uint64_t Parameters(const ModelConfig& config) {
  const auto table = static_cast<uint64_t>(config.vocab * config.hidden);
  return LinearParameters(config) + (config.tied_embeddings ? table : 2 * table);
}

std::string TestName(const char* kind, int64_t tokens, int64_t depth) {
  return depth > 0 ? fmt::format("{}{} @ d{}", kind, tokens, depth)
                   : fmt::format("{}{}", kind, tokens);
}

// Sequences of equal length and contents, and what is done to them.
class Bench {
 public:
  Bench(const Engine& engine, const Subject& subject, const Plan& plan, LimitedResults* results)
      : engine_(engine), subject_(subject), plan_(plan), results_(results) {
    int64_t longest = kWarmUpSteps;
    for (int64_t n : plan.prompts) longest = std::max(longest, n);
    for (int64_t n : plan.generated) longest = std::max(longest, n + kWarmUpSteps);
    const int64_t depth = *std::max_element(plan.depths.begin(), plan.depths.end());
    const int64_t batch = *std::max_element(plan.batches.begin(), plan.batches.end());
    for (int64_t i = 0; i < batch; ++i) {
      sequences_.push_back(std::make_unique<Sequence>(engine, depth + longest));
    }
    Rng rng(1);
    for (int64_t i = 0; i < std::max(depth, longest); ++i) {
      tokens_.push_back(
          static_cast<int32_t>(rng.Below(static_cast<uint64_t>(engine.config().vocab))));
    }
  }

  void RunAll(bool one_layer) {
    for (int64_t depth : plan_.depths) {
      SetDepth(depth);
      for (int64_t n : plan_.prompts) {
        if (n == 0) continue;
        for (int64_t batch : PromptBatches()) Prompt(n, batch, depth, one_layer);
      }
      for (int64_t n : plan_.generated) {
        if (n == 0) continue;
        for (int64_t batch : plan_.batches) {
          Generate(one_layer ? 1 : n, batch, depth, one_layer);
        }
      }
    }
  }

 private:
  // A prompt fills a pass on the CPU, so that batches matter on a GPU only.
  std::vector<int64_t> PromptBatches() const {
    return engine_.device() == "cpu" ? std::vector<int64_t>{1} : plan_.batches;
  }

  void SetDepth(int64_t depth) {
    Sequence& first = *sequences_[0];
    first.Clear();
    if (depth > 0) {
      engine_.Forward(first, std::span(tokens_).first(static_cast<size_t>(depth)),
                      Engine::Logits::kLast);
    }
    for (size_t i = 1; i < sequences_.size(); ++i) sequences_[i]->CopyPrefix(first, depth);
  }

  void BackTo(int64_t depth) {
    for (const auto& sequence : sequences_) sequence->Truncate(depth);
  }

  // Seconds of each repetition of body, with the phases' shares of all of them.
  std::vector<double> Time(int64_t depth, bool one_layer, Result* result,
                           const std::function<void()>& body) {
    std::vector<double> seconds;
    Profile total;
    for (int repetition = 0; repetition < plan_.repetitions; ++repetition) {
      BackTo(depth);
      Profile profile;
      engine_.set_profile(plan_.profile || one_layer ? &profile : nullptr);
      const auto start = std::chrono::steady_clock::now();
      body();
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      engine_.set_profile(nullptr);
      if (one_layer) {  // the ends of the network are no part of a block
        profile.seconds[static_cast<size_t>(Phase::kHead)] = 0;
        profile.seconds[static_cast<size_t>(Phase::kOther)] = 0;
      }
      seconds.push_back(one_layer ? profile.total() : time.count());
      for (size_t i = 0; i < total.seconds.size(); ++i) total.seconds[i] += profile.seconds[i];
    }
    if (total.total() > 0) {
      for (size_t i = 0; i < kPhaseNames.size(); ++i) {
        if (total.seconds[i] == 0) continue;
        result->shares.emplace_back(kPhaseNames[i], total.share(static_cast<Phase>(i)));
      }
    }
    return seconds;
  }

  Result NewResult(const std::string& test, int64_t batch, bool one_layer) const {
    Result result;
    result.bench = one_layer ? "layer" : "e2e";
    result.variant = subject_.variant;
    result.model = subject_.model;
    result.test = test;
    result.batch = batch;
    result.bytes = engine_.weight_bytes();
    result.parameters = Parameters(engine_.config());
    return result;
  }

  // tokens: of each repetition; work: operations or bytes of it.
  void Finish(const std::vector<double>& seconds, double tokens, double work, bool one_layer,
              Ceiling (*of)(const Limits&), Result result) {
    std::vector<double> values;
    for (double s : seconds) {
      values.push_back(one_layer ? 1e6 * s / static_cast<double>(engine_.config().layers)
                                 : tokens / s);
    }
    result.value = Median(values);
    result.spread = Deviation(values);
    result.unit = one_layer ? "us" : "tokens/s";
    results_->Add(std::move(result), work / Median(seconds), of);
  }

  // Appends tokens to the first sequences and draws the next ones.
  void Run(std::vector<BatchItem>& items) {
    greedy_.assign(items.size(), &sampler_);
    drawn_.resize(items.size());
    engine_.SampleBatch(items, greedy_, drawn_);
  }

  void Prompt(int64_t n, int64_t batch, int64_t depth, bool one_layer) {
    Result result = NewResult(TestName("pp", n, depth), batch, one_layer);
    std::vector<BatchItem> items;
    for (int64_t i = 0; i < batch; ++i) {
      items.push_back({sequences_[static_cast<size_t>(i)].get(),
                       std::span(tokens_).first(static_cast<size_t>(n))});
    }
    BackTo(depth);
    Run(items);
    const std::vector<double> seconds = Time(depth, one_layer, &result, [&] { Run(items); });
    const double tokens = static_cast<double>(n * batch);
    const double operations = 2.0 * static_cast<double>(LinearParameters(engine_.config()));
    result.memory = engine_.device_memory();
    Finish(seconds, tokens, operations * tokens, one_layer,
           subject_.integers ? IntegerPeak : FloatPeak, std::move(result));
  }

  void Generate(int64_t n, int64_t batch, int64_t depth, bool one_layer) {
    Result result = NewResult(TestName("tg", n, depth), batch, one_layer);
    std::vector<BatchItem> items;
    size_t token = 0;
    for (int64_t i = 0; i < batch; ++i) {
      items.push_back({sequences_[static_cast<size_t>(i)].get(), {}});
    }
    const auto step = [&] {
      for (BatchItem& item : items) {
        item.tokens = std::span(tokens_).subspan(token, 1);
        token = (token + 1) % tokens_.size();
      }
      Run(items);
    };
    BackTo(depth);
    for (int64_t i = 0; i < kWarmUpSteps; ++i) step();
    const std::vector<double> seconds = Time(depth, one_layer, &result, [&] {
      for (int64_t i = 0; i < n; ++i) step();
    });
    result.memory = engine_.device_memory();
    // Each step reads the weights, and each sequence's K and V so far.
    const Sequence& sequence = *sequences_[0];
    const double per_position =
        static_cast<double>(sequence.cache_bytes()) / static_cast<double>(sequence.capacity());
    const double context = static_cast<double>(depth) + static_cast<double>(n + 1) / 2;
    double weights = static_cast<double>(engine_.bytes_per_pass());
    if (one_layer) weights = static_cast<double>(engine_.block_bytes());
    const double bytes = weights + static_cast<double>(batch) * per_position * context;
    Finish(seconds, static_cast<double>(n * batch), bytes * static_cast<double>(n), one_layer,
           ReadBandwidth, std::move(result));
  }

  const Engine& engine_;
  const Subject& subject_;
  const Plan& plan_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  std::vector<int32_t> tokens_;
  Sampler sampler_{SamplerOptions()};
  std::vector<Sampler*> greedy_;  // a step's, one for each sequence
  std::vector<int32_t> drawn_;
  LimitedResults* results_;
};

void RunTests(const Engine& engine, const Subject& subject, const Plan& plan, bool one_layer,
              Run* run) {
  LimitedResults results(engine);
  Bench(engine, subject, plan, &results).RunAll(one_layer);
  results.Finish(run);
}

}  // namespace

void RunEndToEnd(const Engine& engine, const Subject& subject, const Plan& plan, Run* run) {
  RunTests(engine, subject, plan, /*one_layer=*/false, run);
}

void RunLayer(const Engine& engine, const Subject& subject, const Plan& plan, Run* run) {
  RunTests(engine, subject, plan, /*one_layer=*/true, run);
}

}  // namespace flatquant::bench
