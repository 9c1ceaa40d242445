#pragma once

#include <string>

namespace flatquant {

// What a process that was stopped by a signal, its work kept, exits with: EX_TEMPFAIL
// of sysexits.h, "try again".
inline constexpr int kStoppedExitStatus = 75;

// While it lives, SIGTERM and SIGINT end the process with kStoppedExitStatus and one
// line on stderr: at once, or at the end of the write that is going on (HoldSignals).
// That is safe because a job's files are whole at any moment. A second signal kills.
// One at a time.
class ExitOnSignals {
 public:
  // message: the line, without its end; empty: none.
  explicit ExitOnSignals(const std::string& message);
  ~ExitOnSignals();
  ExitOnSignals(const ExitOnSignals&) = delete;
  ExitOnSignals& operator=(const ExitOnSignals&) = delete;
};

// Puts the exit off until the write that it surrounds is complete.
class HoldSignals {
 public:
  HoldSignals();
  ~HoldSignals();
  HoldSignals(const HoldSignals&) = delete;
  HoldSignals& operator=(const HoldSignals&) = delete;
};

}  // namespace flatquant
