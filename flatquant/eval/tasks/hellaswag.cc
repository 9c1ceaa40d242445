// HellaSwag: context "ACTIVITY: CTX_A CTX_B" with CTX_B capitalized, a blank and
// each of four endings; context and endings cleaned of WikiHow's marks. Data that is
// prepared already has "query" in place of the parts and is taken as it is.

#include "flatquant/data/text_sources.h"
#include "flatquant/eval/tasks/rules.h"
#include "flatquant/tokenizer/unicode.h"

namespace flatquant {
namespace {

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

// Removes "[...]" up to the nearest bracket on the same line.
void RemoveBracketed(std::string& text) {
  for (size_t open = 0; (open = text.find('[', open)) != std::string::npos;) {
    const size_t end = text.find_first_of("]\n", open);
    if (end == std::string::npos || text[end] == '\n') {
      ++open;
    } else {
      text.erase(open, end + 1 - open);
    }
  }
}

std::string Cleaned(std::string_view raw) {
  std::string text(StripWhitespace(raw));
  ReplaceAll(text, " [title]", ". ");
  RemoveBracketed(text);
  ReplaceAll(text, "  ", " ");
  return text;
}

// First letter in upper case, all others in lower, as Python's str.capitalize.
// (Full case mapping differs from this for a few letters outside ASCII, none of
// which begins a context of the release.)
std::string Capitalized(std::string_view text) {
  std::string lower = tokenizer::Lowercase(text);
  if (!lower.empty() && lower[0] >= 'a' && lower[0] <= 'z') {
    lower[0] = static_cast<char>(lower[0] - 'a' + 'A');
  }
  return lower;
}

}  // namespace

TaskItem HellaswagItem(const TaskRecord& record, const std::optional<std::string>& label) {
  const bool prepared = record.Has("query");
  std::string context;
  if (prepared) {
    context = record.Text("query");
  } else {
    context = Cleaned(record.Text("activity_label") + ": " + record.Text("ctx_a") + " " +
                      Capitalized(record.Text("ctx_b")));
  }
  std::vector<std::string> endings = record.Texts("endings");
  if (endings.size() != 4) {
    record.Fail("eval.bad_field", "\"endings\" are not four", "use the task's release file");
  }
  if (!prepared) {
    for (std::string& ending : endings) ending = Cleaned(ending);
  }
  TaskItem item = AnswersTo(context, endings);
  item.gold = IndexOfLabel(record, LabelOf(record, "label", label), {"0", "1", "2", "3"});
  return item;
}

}  // namespace flatquant
