#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// The lines of a text without their ends ("\n" or "\r\n"). A last line without
// an end counts, an empty one does not.
std::vector<std::string_view> SplitLines(std::string_view text);

// The text without white space at both ends; white space is what Python's
// str.strip() takes away, since that made the field's data sets.
std::string_view StripWhitespace(std::string_view text);

// As StripWhitespace, at the end only.
std::string_view StripTrailingWhitespace(std::string_view text);

// WikiText-2 as the field evaluates it: a line that is blank after stripping
// becomes "", any other keeps one trailing "\n"; joined by "\n\n".
std::string Wikitext2Text(std::string_view raw);

// Penn Treebank: stripped lines joined by " ".
std::string PtbText(std::string_view raw);

// The "text" members of JSON lines; blank lines are skipped. limit > 0 keeps the
// first `limit` documents. Errors: data.bad_json, naming file and line.
std::vector<std::string> JsonDocuments(std::string_view jsonl, const std::filesystem::path& path,
                                       size_t limit = 0);

std::string Join(const std::vector<std::string>& parts, std::string_view separator);

}  // namespace flatquant
