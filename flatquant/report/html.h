#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// Text as HTML shows it, safe in elements and in quoted attributes. Control
// characters but line ends and tabs become U+FFFD.
std::string EscapeHtml(std::string_view text);

// JSON as the contents of a <script type="application/json">, which no "</script>"
// in a string can end.
std::string EscapeJsonForScript(std::string_view json);

// A table whose cells are text; columns after the first `text_columns` are numbers
// and right-aligned.
struct HtmlTable {
  std::vector<std::string> head;  // empty: no head
  std::vector<std::vector<std::string>> rows;
  size_t text_columns = 1;

  std::string Html() const;
};

// An SVG with its caption, which is text.
std::string Figure(const std::string& svg, std::string_view caption);

// HTML behind a line of text that opens it.
std::string Details(std::string_view summary, const std::string& html);

// A whole page, self-contained: its style is in it, light or dark as the reader has
// it, readable on a phone. body: HTML. json: shown nowhere, behind a button that
// saves it.
std::string HtmlPage(std::string_view title, std::string_view body, std::string_view json);

}  // namespace flatquant
