#pragma once

#include <sys/types.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

// Programs as their users run them: processes with arguments, output and a status.
namespace flatquant::testing {

// A running program. Its output goes to files; its input is empty.
class ChildProcess {
 public:
  // arguments: the program's path or name, then what it is told. environment: set
  // beside what the test's own process has.
  explicit ChildProcess(std::vector<std::string> arguments,
                        const std::map<std::string, std::string>& environment = {});
  ~ChildProcess();  // kills it, if it still runs
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // Waits for at most so many seconds; whether it has ended.
  bool WaitFor(double seconds);

  // Waits for the end: the exit status, or 128 + the signal that ended it.
  int Wait();

  void Signal(int number) const;
  pid_t pid() const { return pid_; }

  std::string Out() const;
  std::string Err() const;

 private:
  std::filesystem::path folder_;
  pid_t pid_ = -1;
  int status_ = -1;
};

struct Outcome {
  int status = -1;  // ChildProcess::Wait's
  std::string out;
  std::string err;
};

// Runs a program to its end.
Outcome RunProgram(std::vector<std::string> arguments);

}  // namespace flatquant::testing
