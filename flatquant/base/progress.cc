#include "flatquant/base/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace flatquant {
namespace {

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Progress::Progress(std::string label, uint64_t total)
    : label_(std::move(label)),
      total_(std::max<uint64_t>(total, 1)),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_draw_(start_) {}

Progress::~Progress() {
  if (terminal_ && drawn_) {
    Draw(true);
    std::fputc('\n', stderr);
  }
}

void Progress::Advance(uint64_t units, const std::string& note) {
  done_ = std::min(total_, done_ + units);
  if (!note.empty()) note_ = note;
  if (terminal_) {
    if (SecondsSince(last_draw_) >= 0.2) Draw(false);
    return;
  }
  const int tenths = static_cast<int>(done_ * 10 / total_);
  if (tenths > printed_tenths_ && SecondsSince(start_) >= 1.0) {
    printed_tenths_ = tenths;
    Draw(false);
  }
}

void Progress::Line(const std::string& text) {
  if (terminal_ && drawn_) std::fputs("\r\x1b[K", stderr);
  std::fprintf(stderr, "%s\n", text.c_str());
  if (terminal_ && drawn_) Draw(false);
}

void Progress::Draw(bool last) {
  const double elapsed = SecondsSince(start_);
  const double fraction = static_cast<double>(done_) / static_cast<double>(total_);
  const double remaining = fraction > 0 ? elapsed * (1 - fraction) / fraction : 0;
  last_draw_ = Clock::now();
  drawn_ = true;
  char text[64];
  std::snprintf(text, sizeof(text), "%3.0f%% %s", fraction * 100, FormatDuration(elapsed).c_str());
  std::string line = label_;
  if (terminal_) {
    constexpr int kWidth = 24;
    const int filled = static_cast<int>(fraction * kWidth);
    line += " [" + std::string(filled, '#') + std::string(kWidth - filled, '.') + "]";
  }
  line += std::string(" ") + text;
  if (!last && done_ < total_ && done_ > 0) line += ", ETA " + FormatDuration(remaining);
  if (!note_.empty()) line += ", " + note_;
  if (terminal_) {
    std::fprintf(stderr, "\r%s\x1b[K", line.c_str());
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

std::string FormatDuration(double seconds) {
  char text[32];
  const auto whole = static_cast<long>(seconds + 0.5);
  if (seconds < 60) {
    std::snprintf(text, sizeof(text), "%.1fs", seconds);
  } else if (whole < 3600) {
    std::snprintf(text, sizeof(text), "%ld:%02ld", whole / 60, whole % 60);
  } else {
    std::snprintf(text, sizeof(text), "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return text;
}

std::string FormatBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    ++unit;
  }
  char text[32];
  std::snprintf(text, sizeof(text), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text;
}

}  // namespace flatquant
