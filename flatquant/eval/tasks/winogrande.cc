// WinoGrande by partial scoring: what follows the blank "_" is scored after each
// way of filling it, so the choices differ in their context, not in what is scored.

#include "flatquant/data/text_sources.h"
#include "flatquant/eval/tasks/rules.h"

namespace flatquant {

TaskItem WinograndeItem(const TaskRecord& record, const std::optional<std::string>& label) {
  const std::string& sentence = record.Text("sentence");
  const size_t blank = sentence.find('_');
  if (blank == std::string::npos) {
    record.Fail("eval.bad_field", "\"sentence\" has no blank '_'",
                "use the task's original release file");
  }
  const std::string rest =
      " " + std::string(StripWhitespace(std::string_view(sentence).substr(blank + 1)));
  TaskItem item;
  for (const char* option : {"option1", "option2"}) {
    item.choices.push_back({sentence.substr(0, blank) + record.Text(option), rest});
  }
  item.gold = IndexOfLabel(record, LabelOf(record, "answer", label), {"1", "2"});
  return item;
}

}  // namespace flatquant
