#include "flatquant/base/error.h"

#include <cstdio>
#include <cstdlib>

namespace flatquant {
namespace {

std::string Message(std::string_view name, std::string_view where, std::string_view what,
                    std::string_view hint) {
  std::string text;
  if (!where.empty()) text.append(where).append(": ");
  text.append(what);
  if (!hint.empty()) text.append("; ").append(hint);
  text.append(" [").append(name).append("]");
  return text;
}

}  // namespace

Error::Error(std::string_view name, std::string_view where, std::string_view what,
             std::string_view hint)
    : std::runtime_error(Message(name, where, what, hint)), name_(name) {}

namespace internal {

void CheckFailed(const char* file, int line, const char* condition) noexcept {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace internal
}  // namespace flatquant
