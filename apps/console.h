#pragma once

#include <fmt/format.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>

namespace flatquant {

// Text fit for one line of a terminal: control characters, which file names and
// file contents may hold, become '?'.
std::string Printable(std::string_view text);

// The results of a command: lines for people on stdout, and one JSON object for
// machines where --json says ("-" is stdout, which then carries nothing else; ""
// is nowhere). Progress and logs are no results and go to stderr.
class Report {
 public:
  // Fails early where the file could not be written in the end. Errors:
  // output.not_writable.
  explicit Report(std::string json_destination);

  // Whether lines for people are printed.
  bool human() const { return json_ != "-"; }

  template <typename... T>
  void Line(fmt::format_string<T...> format, T&&... arguments) const {
    if (human()) Print(fmt::format(format, std::forward<T>(arguments)...) + "\n");
  }

  // The JSON object, one line. A regular file appears whole or not at all.
  void WriteJson(std::string_view json) const;

  bool wants_json() const { return !json_.empty(); }

 private:
  static void Print(std::string_view text);

  std::string json_;
};

// A remark on stderr: "flatquant: TEXT".
void Log(std::string_view text);

// Throws output.not_writable unless a file or folder of this name can be made:
// the nearest existing folder above it must be writable.
void CheckCanCreate(const std::filesystem::path& path);

}  // namespace flatquant
