#include "tests/support/run_binary.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <iterator>
#include <thread>
#include <utility>

#include "tests/support/shared_data.h"

namespace flatquant::testing {
namespace fs = std::filesystem;

namespace {

std::string Text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

int StatusOf(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

ChildProcess::ChildProcess(std::vector<std::string> arguments,
                           const std::map<std::string, std::string>& environment)
    : folder_(ScratchFolder()) {
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const fs::path out = folder_ / "out";
  const fs::path err = folder_ / "err";
  pid_ = ::fork();
  if (pid_ != 0) return;
  for (const auto& [name, value] : environment) ::setenv(name.c_str(), value.c_str(), 1);
  ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
  ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
  ::execvp(argv[0], argv.data());
  ::_exit(127);
}

ChildProcess::~ChildProcess() {
  if (pid_ < 0) return;
  Signal(SIGKILL);
  Wait();
}

bool ChildProcess::WaitFor(double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (pid_ >= 0) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      status_ = StatusOf(status);
      pid_ = -1;
      break;
    }
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

int ChildProcess::Wait() {
  int status = 0;
  if (pid_ >= 0 && ::waitpid(pid_, &status, 0) == pid_) {
    status_ = StatusOf(status);
    pid_ = -1;
  }
  return status_;
}

void ChildProcess::Signal(int number) const {
  if (pid_ >= 0) ::kill(pid_, number);
}

std::string ChildProcess::Out() const { return Text(folder_ / "out"); }
std::string ChildProcess::Err() const { return Text(folder_ / "err"); }

Outcome RunProgram(std::vector<std::string> arguments) {
  ChildProcess child(std::move(arguments));
  const int status = child.Wait();
  return {status, child.Out(), child.Err()};
}

}  // namespace flatquant::testing
