#include "flatquant/compress/job/stop_signal.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

constexpr int kSignals[] = {SIGTERM, SIGINT};

// What the handler reads: it may run on any thread, between any two instructions.
std::atomic<int> holds{0};
std::atomic<bool> asked{false};
char message[4096];
size_t message_size = 0;
struct sigaction previous[std::size(kSignals)];
std::atomic<bool> installed{false};

[[noreturn]] void Leave() {
  if (message_size > 0) {
    // A terminal that is gone must not keep the process.
    [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, message, message_size);
  }
  ::_exit(kStoppedExitStatus);
}

void Handle(int) {
  for (const int each : kSignals) ::signal(each, SIG_DFL);
  asked = true;
  if (holds == 0) Leave();
}

}  // namespace

ExitOnSignals::ExitOnSignals(const std::string& text) {
  FLATQUANT_CHECK(!installed.exchange(true));
  message_size = 0;
  if (!text.empty()) {
    // On a terminal the bar is left as it is, on a line of its own.
    const std::string line = (::isatty(STDERR_FILENO) == 1 ? "\n" : "") + text;
    message_size = std::min(line.size(), sizeof(message) - 1);
    std::memcpy(message, line.data(), message_size);
    message[message_size++] = '\n';
  }
  asked = false;
  struct sigaction action = {};
  action.sa_handler = Handle;
  sigemptyset(&action.sa_mask);
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    ::sigaction(kSignals[i], &action, &previous[i]);
  }
}

ExitOnSignals::~ExitOnSignals() {
  for (size_t i = 0; i < std::size(kSignals); ++i) {
    ::sigaction(kSignals[i], &previous[i], nullptr);
  }
  installed = false;
}

HoldSignals::HoldSignals() { ++holds; }

HoldSignals::~HoldSignals() {
  if (--holds == 0 && asked) Leave();
}

}  // namespace flatquant
