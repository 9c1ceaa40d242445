#include "apps/console.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

// Devices and pipes must be written in place: a rename would replace them.
bool IsSpecialFile(const fs::path& path) {
  std::error_code ignored;
  const fs::file_status status = fs::status(path, ignored);
  return fs::exists(status) && !fs::is_regular_file(status) && !fs::is_directory(status);
}

}  // namespace

std::string Printable(std::string_view text) {
  std::string line;
  line.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    // U+0080..U+009F, terminal controls too, are 0xc2 and their own value in UTF-8.
    const bool c1 = c == 0xc2 && i + 1 < text.size() &&
                    (static_cast<unsigned char>(text[i + 1]) & 0xe0) == 0x80;
    if (c1) ++i;
    line += c < 0x20 || c == 0x7f || c1 ? '?' : static_cast<char>(c);
  }
  return line;
}

void Log(std::string_view text) {
  std::fprintf(stderr, "flatquant: %s\n", Printable(text).c_str());
}

void CheckCanCreate(const fs::path& path) {
  std::error_code ignored;
  fs::path folder = fs::absolute(path, ignored).lexically_normal();
  if (!folder.has_filename()) folder = folder.parent_path();  // "out/"
  do {
    folder = folder.parent_path();
  } while (!fs::exists(folder, ignored) && folder.has_relative_path());
  if (!fs::is_directory(folder, ignored)) {
    throw Error("output.not_writable", path.string(), folder.string() + " is not a folder",
                "choose another place");
  }
  // Permissions do not tell all (root, read-only mounts, quotas): try it.
  std::string probe = (folder / ".flatquant-XXXXXX").string();
  const int descriptor = ::mkstemp(probe.data());
  if (descriptor < 0) {
    throw Error("output.not_writable", path.string(),
                "cannot write into " + folder.string() + " (" + std::strerror(errno) + ")",
                "choose another place or mend its permissions");
  }
  ::close(descriptor);
  ::unlink(probe.c_str());
}

Report::Report(std::string json_destination) : json_(std::move(json_destination)) {
  if (json_.empty() || json_ == "-" || IsSpecialFile(json_)) return;
  std::error_code ignored;
  if (fs::is_directory(json_, ignored)) {
    throw Error("output.not_writable", json_, "is a folder", "name a file after --json");
  }
  const fs::path parent = fs::path(json_).parent_path();
  if (!parent.empty() && !fs::is_directory(parent, ignored)) {
    throw Error("output.not_writable", json_, "its folder does not exist", "create it first");
  }
  CheckCanCreate(json_);
}

void Report::WriteJson(std::string_view json) const {
  if (json_.empty()) return;
  const std::string line = std::string(json) + "\n";
  if (json_ == "-") {
    Print(line);
    return;
  }
  if (!IsSpecialFile(json_)) {
    AtomicFile file(json_);
    file.Write(line);
    file.Commit();
    return;
  }
  std::FILE* file = std::fopen(json_.c_str(), "w");
  const bool written =
      file != nullptr && std::fwrite(line.data(), 1, line.size(), file) == line.size();
  const bool closed = file != nullptr && std::fclose(file) == 0;
  if (!written || !closed) {
    throw Error("output.not_writable", json_,
                std::string("cannot write (") + std::strerror(errno) + ")", "choose another place");
  }
}

void Report::Print(std::string_view text) {
  // Whether all arrived is checked once, by main(), when stdout is flushed.
  std::fwrite(text.data(), 1, text.size(), stdout);
}

}  // namespace flatquant
