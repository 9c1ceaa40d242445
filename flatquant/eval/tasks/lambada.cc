// LAMBADA (OpenAI's version): all but the last word, words being what single blanks
// separate, is the context; a blank and the last word is scored.

#include "flatquant/eval/tasks/rules.h"

namespace flatquant {

TaskItem LambadaItem(const TaskRecord& record, const std::optional<std::string>&) {
  const std::string& text = record.Text("text");
  const size_t blank = text.rfind(' ');
  TaskItem item;
  if (blank == std::string::npos) {
    item.choices.push_back({"", " " + text});
  } else {
    item.choices.push_back({text.substr(0, blank), text.substr(blank)});
  }
  return item;
}

}  // namespace flatquant
