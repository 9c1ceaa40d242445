#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "flatquant/eval/text_windows.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// The logits at a text's scored tokens, window by window and some positions at a
// time, wherever they come from: a model that runs, or a file.
class LogitRows {
 public:
  virtual ~LogitRows() = default;

  virtual int64_t vocab() const = 0;

  // Goes to the first scored token of a window.
  virtual void Begin(size_t window) = 0;

  // Logits that predict the window's next `count` scored tokens, [count, vocab], each
  // row up to a constant; valid until the next call.
  virtual std::span<const float> Next(size_t count) = 0;
};

// Rows of a model. Errors: eval.context; of Begin and Next those of Engine::Forward.
class EngineLogitRows : public LogitRows {
 public:
  EngineLogitRows(const Engine& engine, const TextWindows& text);

  int64_t vocab() const override { return engine_.config().vocab; }
  void Begin(size_t window) override;
  std::span<const float> Next(size_t count) override;

 private:
  const Engine& engine_;
  const TextWindows& text_;
  Sequence sequence_;
  std::span<const int32_t> left_;  // tokens of the window that have not run
};

// How many rows to ask for at a time.
size_t RowsAtATime(int64_t vocab);

}  // namespace flatquant
