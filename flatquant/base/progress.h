#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace flatquant {

// Progress of long work on stderr: a bar with percentage, elapsed time and ETA,
// redrawn in place on a terminal; a plain line at each tenth elsewhere. Silent
// below one second of work in all. Not thread-safe: advance from one thread.
class Progress {
 public:
  // label: what is being done, e.g. "calibrating"; total: units of work.
  Progress(std::string label, uint64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // note: a short running figure shown at the end of the line ("ppl 27.0").
  void Advance(uint64_t units = 1, const std::string& note = {});

  // Prints a line of its own above the bar.
  void Line(const std::string& text);

 private:
  void Draw(bool last);

  std::string label_;
  uint64_t total_;
  uint64_t done_ = 0;
  std::string note_;
  bool terminal_;
  bool drawn_ = false;
  int printed_tenths_ = 0;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

// "1:02:03", "4:05" or "3.2s".
std::string FormatDuration(double seconds);

// "13.9 MB", decimal units as file managers and Hugging Face show them.
std::string FormatBytes(uint64_t bytes);

}  // namespace flatquant
