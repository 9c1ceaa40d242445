#include "flatquant/report/html.h"

#include "flatquant/report/plot.h"

namespace flatquant {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --text: #1b1f24; --page: #ffffff; --faint: #6a737d;
  --line: #d5dae0; --shade: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e8ec; --page: #14171a; --faint: #98a2ad; --line: #333a41;
    --shade: #1d2125; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 0.5rem; }
p, figcaption { color: var(--faint); margin: 0.3rem 0 0.8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.9rem 0.3rem 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 500; }
.number { text-align: right; white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.2rem 0 0.4rem; }
summary { cursor: pointer; padding: 0.3rem 0; color: var(--faint); }
figure { margin: 0 0 1.5rem; min-width: 0; }
figure svg { width: 100%; min-width: 30rem; max-width: 44rem; height: auto; display: block; }
.plots { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
.plots figure svg { min-width: 18rem; }
.warnings { border-left: 0.25rem solid #d55e00; margin: 0.5rem 0; padding: 0.3rem 0 0.3rem 1.5rem; }
.pair { display: grid; gap: 1rem; margin: 0 0 1.5rem; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }
.pair > div { background: var(--shade); border-radius: 0.4rem; padding: 0.7rem; }
.pair b { display: block; color: var(--faint); font-weight: 500; }
.sample { white-space: pre-wrap; } .prompt { color: var(--faint); }
button { font: inherit; padding: 0.4rem 0.8rem; border: 1px solid var(--line);
  border-radius: 0.4rem; background: var(--shade); color: var(--text); cursor: pointer; }
)";

constexpr std::string_view kScript = R"(
document.getElementById('save').addEventListener('click', () => {
  const text = document.getElementById('data').textContent;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
  link.download = 'flatquant-report.json';
  link.click();
  URL.revokeObjectURL(link.href);
});
)";

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string html;
  html.reserve(text.size());
  for (char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    switch (c) {
      case '&':
        html += "&amp;";
        break;
      case '<':
        html += "&lt;";
        break;
      case '>':
        html += "&gt;";
        break;
      case '"':
        html += "&quot;";
        break;
      case '\'':
        html += "&#39;";
        break;
      default:
        if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
          html += "\xef\xbf\xbd";
        } else {
          html += c;
        }
    }
  }
  return html;
}

std::string EscapeJsonForScript(std::string_view json) {
  std::string text;
  text.reserve(json.size());
  for (char c : json) {
    if (c == '<') {  // in JSON only inside strings, where this means the same
      text += "\\u003c";
    } else {
      text += c;
    }
  }
  return text;
}

std::string HtmlTable::Html() const {
  const auto row = [&](const std::vector<std::string>& cells, const char* tag) {
    std::string html = "<tr>";
    for (size_t i = 0; i < cells.size(); ++i) {
      html.append("<").append(tag).append(i >= text_columns ? " class=\"number\">" : ">");
      html.append(EscapeHtml(cells[i])).append("</").append(tag).append(">");
    }
    return html + "</tr>\n";
  };
  std::string html = "<div class=\"wide\"><table>\n";
  if (!head.empty()) html += row(head, "th");
  for (const auto& cells : rows) html += row(cells, "td");
  return html + "</table></div>\n";
}

std::string Figure(const std::string& svg, std::string_view caption) {
  return "<figure><div class=\"wide\">" + svg + "</div><figcaption>" + EscapeHtml(caption) +
         "</figcaption></figure>\n";
}

std::string Details(std::string_view summary, const std::string& html) {
  return "<details><summary>" + EscapeHtml(summary) + "</summary>\n" + html + "</details>\n";
}

std::string HtmlPage(std::string_view title, std::string_view body, std::string_view json) {
  std::string page = "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
  page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
  // Nothing is ever fetched; an icon neither.
  page += "<link rel=\"icon\" href=\"data:,\">\n<title>";
  page += EscapeHtml(title);
  page.append("</title>\n<style>").append(kStyle);
  for (std::string_view ink : {kPlotInk, kPlotInkBlanks}) {
    page.append("figure svg [fill=\"").append(ink).append("\"] { fill: var(--faint); }\n");
    page.append("figure svg [stroke=\"").append(ink).append("\"] { stroke: var(--faint); }\n");
  }
  page.append("</style>\n</head>\n<body>\n").append(body);
  page += "<h2>Raw data</h2>\n<p>Every figure of this page with all its digits.</p>\n";
  page += "<button id=\"save\" type=\"button\">Save as JSON</button>\n";
  page += "<script id=\"data\" type=\"application/json\">";
  page += EscapeJsonForScript(json);
  page.append("</script>\n<script>").append(kScript).append("</script>\n</body>\n</html>\n");
  return page;
}

}  // namespace flatquant
