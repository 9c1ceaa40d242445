// gnuplot as a child process: the script goes in through one pipe, the picture comes
// out of another. No shell, no files.

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/report/plot.h"

namespace flatquant {
namespace {

// A pipe whose ends close themselves.
struct Pipe {
  int read_end = -1, write_end = -1;
  Pipe() {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) != 0) {
      throw Error("report.plot_failed", "gnuplot",
                  std::string("cannot make a pipe (") + std::strerror(errno) + ")");
    }
    read_end = ends[0];
    write_end = ends[1];
  }
  ~Pipe() {
    Close(read_end);
    Close(write_end);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  static void Close(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
};

constexpr int kNoSuchProgram = 127;

// Feeds the script and collects the output, whichever is ready: both may be larger
// than a pipe holds.
std::string Exchange(Pipe& in, Pipe& out, const std::string& script) {
  ::fcntl(in.write_end, F_SETFL, O_NONBLOCK);
  std::string picture;
  size_t sent = 0;
  for (bool open = true; open;) {
    if (sent == script.size()) Pipe::Close(in.write_end);
    pollfd ends[2] = {{out.read_end, POLLIN, 0}, {in.write_end, POLLOUT, 0}};
    if (::poll(ends, 2, -1) < 0) {
      if (errno == EINTR) continue;
      break;
    }
    if (ends[1].revents != 0 && in.write_end >= 0) {
      const ssize_t count = ::write(in.write_end, script.data() + sent, script.size() - sent);
      if (count > 0) sent += static_cast<size_t>(count);
      // A child that has gone closes its end; its exit status says why.
      if (count < 0 && errno != EAGAIN && errno != EINTR) sent = script.size();
    }
    if (ends[0].revents != 0) {
      std::array<char, 1 << 16> block;
      const ssize_t count = ::read(out.read_end, block.data(), block.size());
      if (count > 0) picture.append(block.data(), static_cast<size_t>(count));
      if (count == 0 || (count < 0 && errno != EINTR)) open = false;
    }
  }
  return picture;
}

}  // namespace

std::string RunGnuplot(const std::string& script) {
  Pipe in, out;
  struct sigaction ignore = {}, before = {};
  ignore.sa_handler = SIG_IGN;
  ::sigaction(SIGPIPE, &ignore, &before);
  const pid_t child = ::fork();
  if (child == 0) {
    ::dup2(in.read_end, STDIN_FILENO);
    ::dup2(out.write_end, STDOUT_FILENO);
    ::signal(SIGPIPE, SIG_DFL);
    ::execlp("gnuplot", "gnuplot", "-d", "-", static_cast<char*>(nullptr));
    ::_exit(kNoSuchProgram);
  }
  Pipe::Close(in.read_end);
  Pipe::Close(out.write_end);
  std::string picture;
  int status = -1;
  if (child > 0) {
    picture = Exchange(in, out, script);
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
  }
  ::sigaction(SIGPIPE, &before, nullptr);
  if (child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == kNoSuchProgram) {
    throw Error("report.no_gnuplot", "gnuplot", "is not installed",
                "install the package gnuplot-nox, or leave plots out with --no-plots");
  }
  if (child < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw Error("report.plot_failed", "gnuplot", "failed", "its message is above");
  }
  return picture;
}

}  // namespace flatquant
